"""A site's dataset: cases, checks, and tensors."""
