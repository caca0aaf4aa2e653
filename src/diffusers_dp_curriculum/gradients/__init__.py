"""The loss, and one gradient for each record at the cost of ordinary training."""
