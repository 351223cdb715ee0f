"""FLARE's connections within a machine on which ``localhost`` leads nowhere, or that has no 127.0.0.1.

FLARE listens on 127.0.0.1 and asks for ``localhost``, whatever that stands for here.
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
    """The address over which this process reaches its machine.

    Attributes:
        address: 127.0.0.1 or ::1.
    """

    address = IPV4


def use_own_loopback() -> bool:
    """Have this process reach its machine over an address that it has; return whether that needed a change.

    Where there is 127.0.0.1 and the name ``localhost`` leads to this machine, nothing is changed.
    """
    found = loopback_addresses()
    if not found or (IPV4 in found and _named() & set(found)):
        return False
    _Own.address = found[0]
    socket.getaddrinfo = _own_addresses
    tcp_driver.socket = types.SimpleNamespace(**{**vars(socket), "socket": _Connecting})
    tcp_driver.TcpStreamServer.address_family = _own_family()
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


def _named() -> set[str]:
    """Return the addresses that ``localhost`` stands for; none where it is not known."""
    with contextlib.suppress(OSError):
        return {str(info[4][0]) for info in _getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    return set()


def _own_address(host: str) -> str:
    """Return this machine's own address for it by any name, another host as it is."""
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
        # Not AI_ADDRCONFIG: it leaves ::1 out where the machine has no other address of IPv6.
        return _getaddrinfo(_Own.address, port, _own_family(), type, proto, flags & ~socket.AI_ADDRCONFIG)
    return _getaddrinfo(host, port, family, type, proto, flags)


class _Connecting(socket.socket):
    """A socket of FLARE's driver for connections within a machine."""

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
