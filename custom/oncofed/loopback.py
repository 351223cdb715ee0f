"""This machine as it reaches itself: over 127.0.0.1, over ::1, or both. Nothing here is open to other machines."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from oncofed.errors import TransferError

IPV4, IPV6 = "127.0.0.1", "::1"
# For servers that other machines reach: all addresses of this one.
ANY = ""
_MOST_TRIES = 64
_SECONDS = 2.0


def loopback_addresses() -> tuple[str, ...]:
    """Return on which of 127.0.0.1 and ::1 this machine reaches itself; what ``localhost`` stands for may be less."""
    return tuple(address for address in (IPV4, IPV6) if _reaches_itself(address))


def require_loopback() -> tuple[str, ...]:
    """Return the addresses of ``loopback_addresses``.

    Raises:
        TransferError: there is none.
    """
    found = loopback_addresses()
    if not found:
        raise TransferError(
            f"this machine cannot reach itself: neither {IPV4} nor {IPV6} answers. Expected a network "
            "device lo that is up: ip link set lo up"
        )
    return found


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its name or address."""
    name = host.rstrip(".").lower()
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    return name == "localhost"


def why_not_bound(address: str, port: int) -> str:
    """Return why nothing can listen at an address and port, in the system's words; empty where something can."""
    try:
        with _listening(address, port):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def free_port() -> int:
    """Return a TCP port on which nobody listens at any loopback address of this machine.

    Raises:
        TransferError: there is no such address, or no such port.
    """
    first, *others = require_loopback()
    for _ in range(_MOST_TRIES):
        with _listening(first, 0) as found:
            port = int(found.getsockname()[1])
            if not any(why_not_bound(address, port) for address in others):
                return port
    raise TransferError("no port is free at this machine's loopback addresses. Name one with --port")


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """Return a connection; to this machine itself over whichever loopback address there is, whatever its name says.

    Args:
        host: name or address.
        port: of it.
        seconds: each try takes at most.

    Raises:
        OSError: there is none.
    """
    try:
        return socket.create_connection((host, port), seconds)
    except OSError:
        for address in loopback_addresses() if is_loopback(host) else ():
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), seconds)
        raise


def _reaches_itself(address: str) -> bool:
    """Return whether a connection to an own address comes about; where the device is down, it can still be bound."""
    with contextlib.suppress(OSError), _listening(address, 0) as server:
        server.listen(1)
        with socket.create_connection(server.getsockname()[:2], _SECONDS):
            return True
    return False


def _listening(address: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        OSError: it cannot be.
    """
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if one.family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, port))
    except OSError:
        one.close()
        raise
    return one
