"""Names of networks -> MONAI networks with defaults that work."""

from oncofed.models.networks import ModelSpec, NetworkRequest, build_network, list_networks, register_network

__all__ = ["ModelSpec", "NetworkRequest", "build_network", "list_networks", "register_network"]
