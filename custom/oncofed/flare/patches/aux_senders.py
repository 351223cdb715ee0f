"""Refuse auxiliary messages that are not of the one who they say they are of.

FLARE 2.9.0 authenticates the headers of each message at the server, token, name and cell, and tells handlers of
auxiliary messages the name that the body states. So one site could ask for work in another's name, which then is not
told of its own, and never counts as silent; and send other sites what the server alone has to say. Replaces
``_aux_communicate`` of the server's ``ServerCommandAgent`` and ``_aux_communication`` of a site's ``CommandAgent``.
"""

from __future__ import annotations

import logging
from functools import cache, wraps

from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys
from nvflare.private.fed.client.command_agent import CommandAgent
from nvflare.private.fed.server.server_command_agent import ServerCommandAgent

_LOG = logging.getLogger(__name__)


@cache
def refuse_false_names(topic: str) -> None:
    """Have the server's job process refuse what states another site's name than its sender's.

    Where no certificates are, in a simulation, a message has no sender but the one that it states.

    Args:
        topic: of the messages.
    """
    process = ServerCommandAgent._aux_communicate

    @wraps(process)
    def process_true_ones(self: ServerCommandAgent, request: Message) -> Message:
        sender = request.get_header(CellMessageHeaderKeys.CLIENT_NAME)
        if request.get_header(MessageHeaderKey.TOPIC) == topic and sender and _stated(request) != sender:
            return _refused(topic, f"{sender} sent it in another's name")
        return process(self, request)

    ServerCommandAgent._aux_communicate = process_true_ones


@cache
def refuse_other_sites(topic: str) -> None:
    """Have a site's job process refuse what comes from another cell than the server's.

    Args:
        topic: of messages that the server alone sends.
    """
    process = CommandAgent._aux_communication

    @wraps(process)
    def process_the_servers(self: CommandAgent, request: Message) -> Message:
        origin = str(request.get_header(MessageHeaderKey.ORIGIN) or "")
        if request.get_header(MessageHeaderKey.TOPIC) == topic and FQCN.get_root(origin) != FQCN.ROOT_SERVER:
            return _refused(topic, f"{origin or 'nobody'} sent it, expected the server")
        return process(self, request)

    CommandAgent._aux_communication = process_the_servers


def _stated(request: Message) -> str | None:
    body = request.payload
    stated = (body.get_peer_props() or {}) if isinstance(body, Shareable) else {}
    return stated.get(ReservedKey.IDENTITY_NAME) if isinstance(stated, dict) else None


def _refused(topic: str, why: str) -> Message:
    _LOG.warning("refused a message %s: %s", topic, why)
    return make_reply(ReturnCode.UNAUTHENTICATED, why, None)
