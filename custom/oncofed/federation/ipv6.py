"""FLARE's connections within a machine that has no 127.0.0.1: over ::1, which FLARE itself does not do."""

from __future__ import annotations

import socket
import types
from multiprocessing import connection
from socketserver import ThreadingTCPServer
from typing import Any

from nvflare.fuel.f3.drivers import tcp_driver

from oncofed.loopback import IPV4, IPV6, is_loopback, loopback_addresses

_getaddrinfo = socket.getaddrinfo


def use_own_loopback() -> bool:
    """Have this process reach this machine over ::1 where it has no 127.0.0.1; return whether that is so.

    Where there is 127.0.0.1 nothing is changed.
    """
    found = loopback_addresses()
    if IPV4 in found or not found:
        return False
    # The name may still stand for 127.0.0.1 alone.
    socket.getaddrinfo = _own_addresses
    tcp_driver.socket = types.SimpleNamespace(**{**vars(socket), "socket": _Connecting})
    tcp_driver.TcpStreamServer.address_family = socket.AF_INET6
    tcp_driver.TcpStreamServer.server_bind = _bind
    return True


def simulate_over_own_loopback() -> None:
    """Have FLARE's simulator and the processes of its sites do so too; they talk over sockets of Python's."""
    # It does much as it is imported, which other processes need not.
    from nvflare.private.fed.app.simulator import simulator_runner  # noqa: PLC0415

    if use_own_loopback():
        simulator_runner.Client = _client
        # A site's module is run as the main program, and imports it then.
        connection.Listener = _Listener  # type: ignore[misc]


def own_address(host: str) -> str:
    """Return ::1 for this machine itself, another host as it is."""
    return IPV6 if is_loopback(host) else host


def _own_addresses(
    host: Any,
    port: Any,
    family: int = 0,
    type: int = 0,  # noqa: A002 - Python's name
    proto: int = 0,
    flags: int = 0,
) -> Any:
    if isinstance(host, str) and is_loopback(host):
        # Not AI_ADDRCONFIG: it leaves ::1 out where the machine has no other address of IPv6.
        return _getaddrinfo(IPV6, port, socket.AF_INET6, type, proto, flags & ~socket.AI_ADDRCONFIG)
    return _getaddrinfo(host, port, family, type, proto, flags)


class _Connecting(socket.socket):
    """A socket of FLARE's driver for connections within a machine."""

    def __init__(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> None:
        del family
        super().__init__(socket.AF_INET6, kind)

    def connect(self, address: Any) -> None:
        host, port = address
        super().connect((own_address(host), port))


def _bind(server: Any) -> None:
    host, port = server.server_address[:2]
    server.server_address = (own_address(host), port)
    ThreadingTCPServer.server_bind(server)


def _client(address: tuple[str, int]) -> connection.Connection:
    return connection.Connection(socket.create_connection((own_address(address[0]), address[1])).detach())


class _Listener(connection.Listener):
    def __init__(self, address: Any = None, family: str | None = None, *arguments: Any, **more: Any) -> None:
        if isinstance(address, tuple) and is_loopback(address[0]):
            address, family = (own_address(address[0]), address[1]), "AF_INET6"
        super().__init__(address, family, *arguments, **more)
