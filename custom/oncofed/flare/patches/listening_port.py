"""Choose the socket that FLARE's server listens on.

FLARE 2.9.0 opens its port itself: replaces ``TCPSite`` of ``aiohttp.web`` within its HTTP driver, so that the port can
be shared with direct connections.
"""

from __future__ import annotations

import socket
import types
from collections.abc import Callable
from typing import Any

from aiohttp import web
from nvflare.fuel.f3.drivers import aio_http_driver

_BACKLOG = 128


def listen_with(open_socket: Callable[[str, int], socket.socket]) -> None:
    """Have FLARE accept its TLS connections from another socket.

    Args:
        open_socket: given host and port, returns what asyncio accepts connections from.
    """

    def site(runner: web.BaseRunner, host: str, port: int, *, ssl_context: Any) -> web.BaseSite:
        if ssl_context is None:
            return web.TCPSite(runner, host, port)
        return web.SockSite(runner, open_socket(host, port), ssl_context=ssl_context, backlog=_BACKLOG)

    aio_http_driver.web = types.SimpleNamespace(**{**vars(web), "TCPSite": site})
