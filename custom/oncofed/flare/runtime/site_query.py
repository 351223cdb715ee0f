"""What the server's main process asks those of the connected sites."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import CellChannel
from nvflare.fuel.f3.message import Message

_SECONDS = 5.0


def query_sites(engine: Any, topic: str, question: Shareable, sites: Collection[Client]) -> dict[str, Shareable]:
    """Return the answers by site; one that does not answer within five seconds is not among them.

    Args:
        engine: of the server's main process.
        topic: for which sites have registered a handler.
        question: the same for all.
        sites: who is asked.
    """
    names = {client.get_fqcn(): client.name for client in sites}
    if not names:
        return {}
    question.set_peer_props({"asks": True})
    replies = engine.get_cell().broadcast_request(
        CellChannel.AUX_COMMUNICATION, topic, list(names), Message(payload=question), timeout=_SECONDS, optional=True
    )
    answers = {names[cell]: reply.payload for cell, reply in (replies or {}).items()}
    return {site: answer for site, answer in answers.items() if isinstance(answer, Shareable)}
