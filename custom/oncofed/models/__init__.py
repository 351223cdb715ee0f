"""Names of networks -> MONAI networks with defaults that work."""

from oncofed.models.known import list_networks
from oncofed.models.model_spec import ModelSpec
from oncofed.models.networks import NetworkRequest, build_network
from oncofed.plugins import register_network

__all__ = ["ModelSpec", "NetworkRequest", "build_network", "list_networks", "register_network"]
