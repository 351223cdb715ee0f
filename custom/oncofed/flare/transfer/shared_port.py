"""One port for FLARE's connections and direct ones: the server's main process hands the latter to their jobs, unread.

What a connection is for its first message says, TLS's ClientHello, which is not enciphered: FLARE's own name no
protocol, direct ones that of their job (see ``way``). Keys are agreed on, and certificates looked at, only where a
connection ends.
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
from oncofed.flare.transfer.protocol import door, job_in_hello
from oncofed.loopback import free_port, is_loopback, require_loopback

_BACKLOG = 128
# A connection that says nothing for so long is FLARE's, which shuts it.
_HELLO_SECONDS = 10.0
_SECONDS_BETWEEN_LOOKS = 0.01
# Of more than these, those that came first are FLARE's.
_MOST_WAITING = 256
# TLS's record: its type, its version, its length.
_RECORD_HEAD, _HANDSHAKE, _LARGEST_RECORD = 5, b"\x16", 1 << 14


@dataclass
class Jobs:
    """Where running jobs take their connections: folders by id."""

    folders: dict[str, Path] = field(default_factory=dict)

    def hand_over(self, connection: socket.socket, job_id: str) -> None:
        """Hand a connection to a job's own process; where there is none it is closed, and the site tries again."""
        folder = self.folders.get(job_id)
        if folder is None:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
            door(folder) as address,
        ):
            sender.setblocking(False)
            sender.connect(address)
            socket.send_fds(sender, [b"c"], [connection.fileno()])


def share_port() -> Jobs:
    """Have FLARE's driver share the port that it will listen on; return where jobs are to be named."""
    jobs = Jobs()
    listen_with(lambda host, port: SharedPort(host, port, jobs))
    return jobs


class SharedPort(socket.socket):
    """To asyncio a socket that listens, and accepts FLARE's connections alone.

    Args:
        host: to listen on.
        port: to listen on.
        jobs: who gets the others.
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
        """Where it listens."""
        return [listening.getsockname()[:2] for listening in self._listening]

    def listen(self, backlog: int = _BACKLOG) -> None:
        """Do nothing: it listens already."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Return the next of FLARE's connections, and whose it is.

        Raises:
            BlockingIOError: there is none now.
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
        """Listen no longer."""
        self._closed = True
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        self._mine.close()
        super().close()

    def _sort(self) -> None:
        """Accept connections, and hand each to whom it is for as soon as it has said so."""
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
                    time.sleep(_SECONDS_BETWEEN_LOOKS)  # what has begun to speak is readable all the time
        for one in (*self._listening, *waiting):
            one.close()

    def _hand_over(self, connection: socket.socket, hello: bytes) -> None:
        with connection:
            job_id = job_in_hello(hello)
            if job_id:
                self._jobs.hand_over(connection, job_id)
            else:
                with contextlib.suppress(OSError):
                    socket.send_fds(self._mine, [b"c"], [connection.fileno()])


def _listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on all addresses of a host; this machine itself has 127.0.0.1, ::1 or both.

    Raises:
        OSError: they cannot.
        FederationError: this machine cannot reach itself.
    """
    # FLARE says 127.0.0.1 for "localhost", which may be another address here.
    own = bool(host) and is_loopback(host)
    hosts = require_loopback() if own else (host or None,)
    port = free_port() if own and not port else port
    found = [
        (int(info[0]), info[4])
        for one in hosts
        for info in socket.getaddrinfo(one, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    listening: list[socket.socket] = []
    try:
        for family, address in sorted(set(found), key=str):
            one = socket.socket(socket.AddressFamily(family), socket.SOCK_STREAM)
            listening.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            one.listen(_BACKLOG)
    except OSError:
        for one in listening:
            one.close()
        raise
    return listening


def _accepted(listening: socket.socket) -> socket.socket | None:
    """Return the next connection; None: it is gone again, or there are too many."""
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
    """Return a connection's first message, or what is there in its place; it stays to be read. None: not yet."""
    try:
        there = connection.recv(_RECORD_HEAD + _LARGEST_RECORD, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    if there[:1] != _HANDSHAKE:
        return there
    length = int.from_bytes(there[3:_RECORD_HEAD], "big")
    is_whole = len(there) >= _RECORD_HEAD + min(length, _LARGEST_RECORD)
    return there if is_whole else None
