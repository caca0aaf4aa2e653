"""The units of privacy: whose contribution a statement is about."""

RECORD = "record"
USER = "user"

# For each unit the adjacency of its statements, as privacy.json states it.
ADJACENCY = {RECORD: "zero_out_one_record", USER: "zero_out_one_user"}
