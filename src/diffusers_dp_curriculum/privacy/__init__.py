"""What mechanisms cost together, what was executed, and what may be stated about it. Reads no record."""
