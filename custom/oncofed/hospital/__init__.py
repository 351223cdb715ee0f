"""A hospital's own systems: images from its archive, and back."""
