"""Share one port between FLARE's connections and direct ones.

The server's main process hands direct connections to their jobs unread. It recognises them by their first message,
TLS's ClientHello, which is not encrypted: FLARE's connections name no protocol there, direct ones that of their job
(see ``protocol``). Keys are agreed on, and certificates checked, only at the process where a connection ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oncofed.flare.patches.listening_port import listen_with
from oncofed.flare.transfer.protocol import handoff_socket, job_in_hello
from oncofed.loopback import free_port, is_loopback, require_loopback

_BACKLOG = 128
# After this time a silent connection goes to FLARE, which closes it.
_HELLO_SECONDS = 10.0
_SECONDS_BETWEEN_LOOKS = 0.01
# If more connections are silent, the oldest go to FLARE.
_MOST_WAITING = 256
# A TLS record: type, version, length.
_RECORD_HEAD, _HANDSHAKE, _LARGEST_RECORD = 5, b"\x16", 1 << 14


@dataclass
class Jobs:
    """Folders where running jobs receive connections, by id."""

    folders: dict[str, Path] = field(default_factory=dict)

    def hand_over(self, connection: socket.socket, job_id: str) -> None:
        """Hand a connection to its job, if that runs."""
        folder = self.folders.get(job_id)
        if folder is None:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
            handoff_socket(folder) as address,
        ):
            sender.setblocking(False)
            sender.connect(address)
            socket.send_fds(sender, [b"c"], [connection.fileno()])


def share_port() -> Jobs:
    """Share FLARE's port from now on; return its jobs."""
    jobs = Jobs()
    listen_with(lambda host, port: SharedPort(host, port, jobs))
    return jobs


class SharedPort(socket.socket):
    """A listening socket that accepts FLARE's connections only.

    Asyncio uses it as any other.

    Args:
        host: to listen on.
        port: to listen on.
        jobs: which receive the other connections.
    """

    def __init__(self, host: str, port: int, jobs: Jobs) -> None:
        self._closed = False
        theirs, self._mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, fileno=theirs.detach())
        self._jobs = jobs
        self._listening = _listen(host, int(port))
        threading.Thread(target=self._sort, name="port", daemon=True).start()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Addresses that it listens on."""
        return [listening.getsockname()[:2] for listening in self._listening]

    def listen(self, backlog: int = _BACKLOG) -> None:
        """Do nothing: it listens already."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Return FLARE's next connection and its peer's address.

        Raises:
            BlockingIOError: none is waiting.
        """
        message, numbers, _, _ = socket.recv_fds(self, 1, 1)
        if not message or not numbers:
            raise BlockingIOError
        connection = socket.socket(fileno=numbers[0])
        try:
            return connection, connection.getpeername()
        except OSError:
            connection.close()
            raise ConnectionAbortedError from None

    def close(self) -> None:
        """Stop listening."""
        self._closed = True
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        self._mine.close()
        super().close()

    def _sort(self) -> None:
        """Accept connections; hand each on after its first message."""
        waiting: dict[socket.socket, float] = {}
        with selectors.DefaultSelector() as selector:
            for listening in self._listening:
                selector.register(listening, selectors.EVENT_READ)
            while not self._closed:
                ready = [key.fileobj for key, _ in selector.select(_HELLO_SECONDS if waiting else None)]
                for listening in self._listening:
                    connection = _accepted(listening) if listening in ready else None
                    if connection:
                        selector.register(connection, selectors.EVENT_READ)
                        waiting[connection] = time.monotonic() + _HELLO_SECONDS
                surplus = len(waiting) - _MOST_WAITING
                for number, (connection, until) in enumerate(list(waiting.items())):
                    hello = _hello(connection)
                    if hello is None and time.monotonic() < until and number >= surplus:
                        continue
                    del waiting[connection]
                    selector.unregister(connection)
                    self._hand_over(connection, hello or b"")
                if waiting:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)  # an incomplete message is always readable
        for left in (*self._listening, *waiting):
            left.close()

    def _hand_over(self, connection: socket.socket, hello: bytes) -> None:
        with connection:
            job_id = job_in_hello(hello)
            if job_id:
                self._jobs.hand_over(connection, job_id)
            else:
                with contextlib.suppress(OSError):
                    socket.send_fds(self._mine, [b"c"], [connection.fileno()])


def _listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on all of a host's addresses.

    Raises:
        OSError: one cannot.
        FederationError: this machine cannot reach itself.
    """
    # FLARE turns "localhost" into 127.0.0.1, but this machine may have ::1 or both.
    own = bool(host) and is_loopback(host)
    hosts = require_loopback() if own else (host or None,)
    port = free_port() if own and not port else port
    found = [
        (int(info[0]), info[4])
        for address in hosts
        for info in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    listening: list[socket.socket] = []
    try:
        for family, address in sorted(set(found), key=str):
            opened = socket.socket(socket.AddressFamily(family), socket.SOCK_STREAM)
            listening.append(opened)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(address)
            opened.listen(_BACKLOG)
    except OSError:
        for opened in listening:
            opened.close()
        raise
    return listening


def _accepted(listening: socket.socket) -> socket.socket | None:
    """Return the next connection, unless that fails."""
    try:
        connection, _ = listening.accept()
    except ConnectionAbortedError:
        return None
    except OSError:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        return None
    connection.setblocking(False)
    return connection


def _hello(connection: socket.socket) -> bytes | None:
    """Return a connection's first message, without taking it; None: incomplete."""
    try:
        received = connection.recv(_RECORD_HEAD + _LARGEST_RECORD, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    if received[:1] != _HANDSHAKE:
        return received
    length = int.from_bytes(received[3:_RECORD_HEAD], "big")
    is_complete = len(received) >= _RECORD_HEAD + min(length, _LARGEST_RECORD)
    return received if is_complete else None
