"""A run from its plan to its last checkpoint, but for the mechanisms themselves."""
