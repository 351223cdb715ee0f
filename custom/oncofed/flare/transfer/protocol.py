"""Shared definitions for both ends of a direct connection."""

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

from oncofed.errors import TransferError

# Requests are for this path and the name that FLARE's message gives the tensors.
PATH = "/weights/"
# Size of an update and how much of it has arrived, as in the IETF's draft for resumable uploads.
LENGTH, OFFSET = "Upload-Length", "Upload-Offset"
# A step of an exchange that takes longer means that the link was cut.
STEP_SECONDS = 30.0

_SLOWEST_LINK_BYTES_PER_SECOND = 500_000
_ANSWER_SECONDS = 10.0
_PREFIX = "oncofed-weights/"
_IN_HELLO = re.compile(re.escape(_PREFIX).encode() + rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def message_timeout(size: int) -> float:
    """Return FLARE's timeout for a message.

    Args:
        size: of the message, in bytes.

    Returns:
        Seconds, enough for the slowest link.
    """
    return _ANSWER_SECONDS + size / _SLOWEST_LINK_BYTES_PER_SECOND


def alpn_protocol(job_id: str) -> str:
    """Return the ALPN protocol of a job's connections (RFC 7301).

    It is readable before keys are negotiated.
    """
    return _PREFIX + job_id


def job_in_hello(hello: bytes) -> str | None:
    """Return the job named in a ClientHello; None: FLARE's connection."""
    found = _IN_HELLO.search(hello)
    return found[1].decode() if found else None


def tls_context(credentials: dict[str, Any], job_id: str, server: bool) -> ssl.SSLContext:
    """Return TLS settings that admit members of the alliance only.

    Args:
        credentials: of FLARE's cell.
        job_id: of the job.
        server: whether it is the server's end.

    Raises:
        TransferError: FLARE's own connections are not protected like this either.
    """
    try:
        context: ssl.SSLContext | None = get_ssl_context({**credentials, DriverParams.SCHEME.value: "https"}, server)
    except Exception as error:  # noqa: BLE001 - FLARE's helper raises errors of any kind
        raise TransferError(f"no certificates for direct connections ({type(error).__name__})") from None
    if context is None or context.verify_mode != ssl.CERT_REQUIRED:
        raise TransferError("FLARE's connections do not ask for certificates")
    context.set_alpn_protocols([alpn_protocol(job_id)])
    return context


def peer_name(connection: ssl.SSLSocket) -> str:
    """Return the name in the other end's certificate."""
    return str(get_certificate_common_name(connection.getpeercert() or {}))


@contextlib.contextmanager
def handoff_socket(folder: Path) -> Iterator[str]:
    """Yield the address where a job's process receives connections.

    Args:
        folder: of the job. Through its file descriptor the address is short: the system allows 107 bytes.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{number}/connections"
    finally:
        os.close(number)
