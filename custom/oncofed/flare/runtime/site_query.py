"""Query the connected sites from the server's main process."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import CellChannel
from nvflare.fuel.f3.message import Message

_SECONDS = 5.0


def query_sites(engine: Any, topic: str, request: Shareable, sites: Collection[Client]) -> dict[str, Shareable]:
    """Return the replies within five seconds, by site.

    Args:
        engine: of the server's main process.
        topic: that the sites have registered a handler for.
        request: the same for all.
        sites: to query.
    """
    names = {client.get_fqcn(): client.name for client in sites}
    if not names:
        return {}
    request.set_peer_props({"asks": True})
    replies = engine.get_cell().broadcast_request(
        CellChannel.AUX_COMMUNICATION, topic, list(names), Message(payload=request), timeout=_SECONDS, optional=True
    )
    payloads = {names[cell]: reply.payload for cell, reply in (replies or {}).items()}
    return {site: payload for site, payload in payloads.items() if isinstance(payload, Shareable)}
