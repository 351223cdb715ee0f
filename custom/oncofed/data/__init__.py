"""A site's dataset: which cases there are, whether they can be used, and how they become tensors."""
