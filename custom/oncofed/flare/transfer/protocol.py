"""What both ends of a direct connection agree on."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.net_utils import get_ssl_context
from nvflare.fuel.hci.security import get_certificate_common_name

from oncofed.errors import FederationError

# Requests are for ``PATH`` and the name that FLARE's message has for the tensors.
PATH = "/weights/"
# How large an update is and how much of it has arrived, as in the IETF's draft for uploads that can be resumed.
LENGTH, OFFSET = "Upload-Length", "Upload-Offset"
# A step of an exchange takes so long at most: then the link counts as cut.
STEP_SECONDS = 30.0

_PREFIX = "oncofed-weights/"
_IN_HELLO = re.compile(re.escape(_PREFIX).encode() + rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def protocol(job_id: str) -> str:
    """Return the protocol that a connection for a job asks for (ALPN, RFC 7301): readable before a key is agreed on."""
    return _PREFIX + job_id


def job_in_hello(hello: bytes) -> str | None:
    """Return the job for which a connection is that begins with these bytes; None: it is one of FLARE's."""
    found = _IN_HELLO.search(hello)
    return found[1].decode() if found else None


def context_of(credentials: dict[str, Any], job_id: str, server: bool) -> ssl.SSLContext:
    """Return how an end speaks TLS: with the certificates of its kit, and only with members of its alliance.

    Args:
        credentials: of FLARE's cell.
        job_id: of the job.
        server: whether it is the server's end.

    Raises:
        FederationError: FLARE's connections are not protected so either.
    """
    try:
        context: ssl.SSLContext | None = get_ssl_context({**credentials, DriverParams.SCHEME.value: "https"}, server)
    except Exception as error:  # noqa: BLE001 - FLARE's helper raises whatever it likes
        raise FederationError(f"no certificates for direct connections ({type(error).__name__})") from None
    if context is None or context.verify_mode != ssl.CERT_REQUIRED:
        raise FederationError("FLARE's connections do not ask for certificates")
    context.set_alpn_protocols([protocol(job_id)])
    return context


def name_of_peer(connection: ssl.SSLSocket) -> str:
    """Return whose certificate the other end showed."""
    return str(get_certificate_common_name(connection.getpeercert() or {}))


@contextlib.contextmanager
def door(folder: Path) -> Iterator[str]:
    """Have the address of the socket through which a job's process is given connections.

    Args:
        folder: the job's own. An address has 107 bytes at most, so that it is told by a descriptor of this folder.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{number}/connections"
    finally:
        os.close(number)
