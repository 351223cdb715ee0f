"""Names of networks -> MONAI networks with defaults that work."""

from oncofed.models.networks import ModelSpec, build_network

__all__ = ["ModelSpec", "build_network"]
