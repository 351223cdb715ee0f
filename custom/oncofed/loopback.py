"""This machine's loopback: 127.0.0.1, ::1 or both.

Never open to other machines.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from oncofed.errors import TransferError

IPV4, IPV6 = "127.0.0.1", "::1"
# For servers that other machines reach: all addresses of this machine.
ANY = ""
_MOST_TRIES = 64
_SECONDS = 2.0


def loopback_addresses() -> tuple[str, ...]:
    """Return the working addresses of 127.0.0.1 and ::1.

    ``localhost`` may resolve to fewer.
    """
    return tuple(address for address in (IPV4, IPV6) if _reaches_itself(address))


def require_loopback() -> tuple[str, ...]:
    """Return the working loopback addresses.

    Raises:
        TransferError: none works.
    """
    found = loopback_addresses()
    if not found:
        raise TransferError(
            f"this machine cannot reach itself: neither {IPV4} nor {IPV6} answers. Expected a network "
            "device lo that is up: ip link set lo up"
        )
    return found


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is loopback."""
    name = host.rstrip(".").lower()
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    return name == "localhost"


def why_not_bound(address: str, port: int) -> str:
    """Return why an address and port cannot be bound.

    In the system's words; empty if they can.
    """
    try:
        with _listening(address, port):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def free_port() -> int:
    """Return a TCP port free at every loopback address.

    Raises:
        TransferError: no loopback address, or no free port.
    """
    first, *others = require_loopback()
    for _ in range(_MOST_TRIES):
        with _listening(first, 0) as found:
            port = int(found.getsockname()[1])
            if not any(why_not_bound(address, port) for address in others):
                return port
    raise TransferError("no port is free at this machine's loopback addresses. Name one with --port")


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """Connect to a host.

    For this machine try each loopback address, however its name resolves.

    Args:
        host: name or address.
        port: of the host.
        seconds: timeout of each attempt.

    Raises:
        OSError: no connection.
    """
    try:
        return socket.create_connection((host, port), seconds)
    except OSError:
        for address in loopback_addresses() if is_loopback(host) else ():
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), seconds)
        raise


def _reaches_itself(address: str) -> bool:
    """Return whether this machine reaches itself at an address.

    Binding also works if the device is down, so a connection is made.

    Binding also works if the device is down.
    """
    with contextlib.suppress(OSError), _listening(address, 0) as server:
        server.listen(1)
        with socket.create_connection(server.getsockname()[:2], _SECONDS):
            return True
    return False


def _listening(address: str, port: int) -> socket.socket:
    """Return a socket bound to an address.

    Raises:
        OSError: the address cannot be bound.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound
