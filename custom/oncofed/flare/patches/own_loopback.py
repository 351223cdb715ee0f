"""Connect FLARE's processes where 127.0.0.1 or ``localhost`` is missing.

FLARE 2.9.0 listens on 127.0.0.1 and connects to ``localhost``, whatever that resolves to. Replaces
``socket.getaddrinfo``, ``multiprocessing.connection.Listener``, and what FLARE's TCP driver and simulator use of
sockets.
"""

from __future__ import annotations

import contextlib
import socket
import types
from multiprocessing import connection
from socketserver import ThreadingTCPServer
from typing import Any

from nvflare.fuel.f3.drivers import tcp_driver

from oncofed.loopback import IPV4, is_loopback, loopback_addresses

_getaddrinfo = socket.getaddrinfo


class _Own:
    """This machine's loopback address.

    Attributes:
        address: 127.0.0.1 or ::1.
    """

    address = IPV4


def use_own_loopback() -> bool:
    """Connect within this machine over an address that it has.

    Returns:
        Whether that needed a change. It needs none where the machine has 127.0.0.1 and ``localhost`` resolves to one of
        its addresses.
    """
    found = loopback_addresses()
    if not found or (IPV4 in found and _named() & set(found)):
        return False
    _Own.address = found[0]
    socket.getaddrinfo = _own_addresses
    tcp_driver.socket = types.SimpleNamespace(**{**vars(socket), "socket": _ClientSocket})
    tcp_driver.TcpStreamServer.address_family = _own_family()
    tcp_driver.TcpStreamServer.server_bind = _bind
    return True


def simulate_over_own_loopback() -> None:
    """Connect FLARE's simulator and its sites over that address."""
    # Imported here: it imports much that other processes do not need. It uses Python's sockets, too.
    from nvflare.private.fed.app.simulator import simulator_runner  # noqa: PLC0415

    if use_own_loopback():
        simulator_runner.Client = _client
        # A site's module imports it later, when it is run as the main program.
        connection.Listener = _Listener  # type: ignore[misc]


def _named() -> set[str]:
    """Return the addresses of ``localhost``, if it resolves."""
    with contextlib.suppress(OSError):
        return {str(info[4][0]) for info in _getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    return set()


def _own_address(host: str) -> str:
    """Return this machine's address for any of its loopback names."""
    return _Own.address if is_loopback(host) else host


def _own_family() -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in _Own.address else socket.AF_INET


def _own_addresses(
    host: Any,
    port: Any,
    family: int = 0,
    type: int = 0,  # noqa: A002 - Python's name
    proto: int = 0,
    flags: int = 0,
) -> Any:
    if isinstance(host, str) and is_loopback(host):
        # Not AI_ADDRCONFIG: it omits ::1 where the machine has no other IPv6 address.
        return _getaddrinfo(_Own.address, port, _own_family(), type, proto, flags & ~socket.AI_ADDRCONFIG)
    return _getaddrinfo(host, port, family, type, proto, flags)


class _ClientSocket(socket.socket):
    """A socket that FLARE's TCP driver connects with."""

    def __init__(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> None:
        del family
        super().__init__(_own_family(), kind)

    def connect(self, address: Any) -> None:
        host, port = address
        super().connect((_own_address(host), port))


def _bind(server: Any) -> None:
    host, port = server.server_address[:2]
    server.server_address = (_own_address(host), port)
    ThreadingTCPServer.server_bind(server)


def _client(address: tuple[str, int]) -> connection.Connection:
    return connection.Connection(socket.create_connection((_own_address(address[0]), address[1])).detach())


class _Listener(connection.Listener):
    def __init__(self, address: Any = None, family: str | None = None, *arguments: Any, **more: Any) -> None:
        if isinstance(address, tuple) and is_loopback(address[0]):
            address, family = (_own_address(address[0]), address[1]), _own_family().name
        super().__init__(address, family, *arguments, **more)
