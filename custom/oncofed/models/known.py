"""Finds the networks that a job may name."""

from __future__ import annotations

from oncofed.errors import SpecError
from oncofed.plugins import MODULES_VARIABLE, NETWORKS, Network, is_loaded


def networks_of_pack(pack: str) -> list[Network]:
    """Return the networks that a loaded pack registered."""
    return [NETWORKS.find(name, pack) for name in NETWORKS.names(pack)]


def find_network(name: str, pack: str = "") -> Network:
    """Return a network by name.

    Args:
        name: of the network.
        pack: digest of the pack that registers it; empty: none.

    Raises:
        SpecError: none has that name, or the pack is not loaded.
    """
    if pack and not is_loaded(pack):
        raise SpecError(f"the pack {pack[:12]}… is not loaded, which only a confined process does at a site")
    found = (NETWORKS.get(name, pack) if pack else None) or NETWORKS.get(name)
    if found:
        return found
    if pack:
        names = ", ".join(sorted(NETWORKS.names(pack))) or "none"
        raise SpecError(f"the pack {pack[:12]}… has no network {name!r}, nor has oncofed; the pack has {names}")
    raise SpecError(
        f"unknown network {name!r}; known are {', '.join(sorted(NETWORKS.names()))}. One of your own is a registered "
        f"function in a module that every site installs and names in {MODULES_VARIABLE}."
    )


def list_networks() -> list[Network]:
    """Return every network that a job may name here."""
    networks = (NETWORKS.find(name) for name in NETWORKS.names())
    return sorted(networks, key=lambda network: (network.kind, network.name))
