"""Everything that releases something of the sensitive records, each with an entry in the ledger."""
