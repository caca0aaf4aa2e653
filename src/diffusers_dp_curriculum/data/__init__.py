"""The sensitive images and labels: found, decoded, checked, and kept as tensors."""
