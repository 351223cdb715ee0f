"""Check who registers at the server or sends heartbeats.

FLARE 2.9.0 checks a certificate's signature and name, but not whether it was issued for a site or a person, and has no
event for it: replaces ``authenticate`` and ``heartbeat`` of the server's ``ClientManager``.
"""

from __future__ import annotations

from collections.abc import Callable

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.server.client_manager import ClientManager


def check_clients(
    manager: ClientManager, may_enter: Callable[[str, bool, FLContext], bool], entered: Callable[[str, bool], bool]
) -> None:
    """Check clients before FLARE admits them.

    Args:
        manager: of the server.
        may_enter: takes a name, whether it logs in as a person, and FLARE's context; returns whether it may.
        entered: called with the first two when FLARE has admitted one; where it returns False the client is rejected.
    """
    authenticate, heartbeat = manager.authenticate, manager.heartbeat

    def authenticate_checked(request: Message, fl_ctx: FLContext) -> Client | None:
        name = str(request.get_header(CellMessageHeaderKeys.CLIENT_NAME))
        as_person = request.get_header(CellMessageHeaderKeys.CLIENT_TYPE) == ClientType.ADMIN
        client = authenticate(request, fl_ctx) if may_enter(name, as_person, fl_ctx) else None
        return client if client is not None and entered(name, as_person) else None

    def heartbeat_checked(token: str, client_name: str, client_fqcn: str, fl_ctx: FLContext) -> bool:
        return may_enter(client_name, False, fl_ctx) and bool(heartbeat(token, client_name, client_fqcn, fl_ctx))

    manager.authenticate, manager.heartbeat = authenticate_checked, heartbeat_checked
