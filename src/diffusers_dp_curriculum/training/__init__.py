"""Everything about a run except the mechanisms: planning, the warm-up stages, checkpoints, resuming and the summary."""
