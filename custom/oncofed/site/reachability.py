"""Whether a machine reaches its server: name, proxy, TLS, clock."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from oncofed.alliance.authority import EXPIRES_SOON_DAYS
from oncofed.alliance.facts import KitFacts
from oncofed.alliance.sealing import ROOT_FILE
from oncofed.errors import TransferError
from oncofed.proxy import open_tunnel, parse_proxy
from oncofed.site.check import Check

_CONNECT_SECONDS = 4.0
_LARGEST_CLOCK_SECONDS = 60.0


def check_route(
    route: tuple[str, int], proxy: str | None, folder: Path | None, facts: KitFacts | None
) -> Iterator[Check]:
    """Check the way to a server, up to its certificate and clock.

    Args:
        route: host and port.
        proxy: to go through, if any.
        folder: of the startup kit; None: only whether the server takes connections.
        facts: of the kit.
    """
    host, port = route
    if proxy:
        yield from _proxied(proxy, route, folder, facts)
        return
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        yield Check("name", "fail", f"{host}: {error.strerror or error}", "ask for a DNS entry, or use /etc/hosts")
        return
    yield Check("name", "ok", f"{host} is {', '.join(addresses[:3])}")
    try:
        connection = socket.create_connection((host, port), _CONNECT_SECONDS)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        advice = f"let this machine out to {host}, TCP {port}, in the firewall; or the server is down"
        yield Check("server", "fail", f"{host}:{port}: {why}", advice)
        return
    yield from _reached(connection, route, folder, facts)


def _proxied(proxy: str, route: tuple[str, int], folder: Path | None, facts: KitFacts | None) -> Iterator[Check]:
    parts, (host, port) = parse_proxy(proxy), route
    named = f"{parts.hostname}:{parts.port}"
    try:
        connection = open_tunnel(proxy, host, port, _CONNECT_SECONDS)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        yield Check("proxy", "fail", f"{named}: {why}", "correct proxy in site.yaml, or ask who looks after the proxy")
        return
    except TransferError as error:
        advice = f"ask who looks after the proxy to let this machine out to {host}, TCP {port}, by CONNECT"
        yield Check("proxy", "fail", f"{named}: {error}", advice)
        return
    yield Check("proxy", "ok", f"{named} opens a way to {host}:{port}")
    yield from _reached(connection, route, folder, facts)


def _reached(
    connection: socket.socket, route: tuple[str, int], folder: Path | None, facts: KitFacts | None
) -> Iterator[Check]:
    with connection:
        if folder is None or facts is None:
            yield Check("server", "ok", f"{route[0]}:{route[1]} takes connections")
            return
        yield from _handshake(connection, folder, facts)


def _handshake(connection: socket.socket, folder: Path, facts: KitFacts) -> Iterator[Check]:
    """Do a TLS handshake with the server; compare clocks."""
    context = ssl.create_default_context(cafile=str(folder / ROOT_FILE))
    context.check_hostname = False
    certificate = facts.certificate_file(folder)
    try:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        with context.wrap_socket(connection) as secured:
            secured.settimeout(_CONNECT_SECONDS)
            theirs = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
            # In TLS 1.3 a server rejects our certificate only with its first answer.
            answer = _probe(secured)
            yield Check("server", "ok", f"{facts.reaches} proves to be of this alliance, {secured.version()}")
            days = (theirs.not_valid_after_utc - datetime.now(timezone.utc)).days
            if days < EXPIRES_SOON_DAYS:
                yield Check("server's certificate", "warn", f"holds {days} days more", "tell the alliance")
            yield from _clock(answer)
    except ssl.SSLCertVerificationError as error:
        yield Check("server", "fail", f"not of this alliance: {error.verify_message}", "tell the alliance at once")
    except (ssl.SSLError, ConnectionError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else type(error).__name__
        advice = (
            "a proxy that opens TLS must let this host through as it is; or the server does not know the certificate"
        )
        yield Check("server", "fail", f"TLS failed: {reason}", advice)
    except OSError as error:
        yield Check("server", "fail", f"TLS failed: {error}", "ask the alliance whether the server is well")


def _probe(secured: ssl.SSLSocket) -> str:
    """Return the server's answer to a request that it refuses.

    Empty after a timeout.
    """
    try:
        secured.sendall(b"HEAD / HTTP/1.1\r\nHost: oncofed\r\nConnection: close\r\n\r\n")
        return secured.recv(4096).decode("latin-1")
    except TimeoutError:
        return ""


def _clock(answer: str) -> Iterator[Check]:
    """Compare clocks by the Date header of the answer."""
    dates = [line.partition(":")[2].strip() for line in answer.split("\r\n") if line.lower().startswith("date:")]
    if not dates:
        return
    offset = (datetime.now(timezone.utc) - parsedate_to_datetime(dates[0])).total_seconds()
    if abs(offset) > _LARGEST_CLOCK_SECONDS:
        found = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the server's"
        yield Check("clock", "fail", found, "set it by NTP: timedatectl set-ntp true")
    else:
        yield Check("clock", "ok", "agrees with the server's")
