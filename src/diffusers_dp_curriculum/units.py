"""The units of privacy: whose contribution a statement is about."""

RECORD = "record"
USER = "user"
