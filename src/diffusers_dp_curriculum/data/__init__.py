"""Finds, decodes and checks the sensitive images and labels, and holds them as tensors."""
