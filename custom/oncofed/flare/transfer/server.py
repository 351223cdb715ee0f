"""The server's end of direct connections, in a job's own process."""

from __future__ import annotations

import contextlib
import http
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from torch import Tensor

from oncofed.errors import FederationError
from oncofed.flare.transfer.buffers import Buffer, BufferPool
from oncofed.flare.transfer.codec import read_body
from oncofed.flare.transfer.protocol import LENGTH, OFFSET, PATH, STEP_SECONDS, door, name_of_peer
from oncofed.messages.chunks import inspect_early
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights

# So many sites at a time; others try again.
_MOST_CONNECTIONS = 256
_log = logging.getLogger(__name__)


class _Upload:
    """An update that is on its way; who writes to its space, or gives it back, holds its lock.

    Args:
        ref: its name.
        space: where it lies.
    """

    def __init__(self, ref: str, space: Buffer) -> None:
        self.ref, self.space = ref, space
        self.lock = threading.Lock()


class TransferServer:
    """Gives sites what is offered to them, and takes what they bring.

    Args:
        folder: the job's own, where updates lie and its main process hands in connections.
        context: how it speaks TLS.
        is_welcome: whether a site, by its certificate, takes part.
        largest: bytes that an update has at most.
    """

    def __init__(self, folder: Path, context: ssl.SSLContext, is_welcome: Callable[[str], bool], largest: int) -> None:
        self.is_welcome, self.largest = is_welcome, largest
        self._context = context
        self._spaces = BufferPool(folder)
        self._lock = threading.Lock()
        self._offered: dict[str, Mapping[str, Tensor]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._arrived: dict[str, tuple[str, Weights]] = {}
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with door(folder) as address:
            Path(address).unlink(missing_ok=True)
            self._door.bind(address)
            Path(address).chmod(0o600)
        threading.Thread(target=self._take_connections, name="direct", daemon=True).start()

    def close(self) -> None:
        """Take no connection any more, and give all room back."""
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        with self._lock:
            self._offered.clear()
            self._arrived.clear()
            self._uploads.clear()
        self._spaces.close()

    def offer(self, ref: str, tensors: Mapping[str, Tensor], abort: Any = None) -> None:
        """Let sites fetch tensors until they are withdrawn."""
        del abort
        with self._lock:
            self._offered[ref] = tensors

    def withdraw(self, ref: str) -> None:
        """Offer something no longer; who is being given it gets the rest."""
        with self._lock:
            self._offered.pop(ref, None)

    def collect(self, origin: str, ref: str, abort: Any = None) -> Weights | None:
        """Return what a site brought; None: it has not, and FLARE is to move it.

        Args:
            origin: FLARE's name of the site's process.
            ref: its name.
            abort: not needed: it is here, or it is not.
        """
        del abort
        with self._lock:
            site = origin.split(".", maxsplit=1)[0]
            arrived, found = self._arrived.get(site, ("", None))
            return self._arrived.pop(site)[1] if found is not None and arrived == ref else None

    def offered(self, ref: str) -> Mapping[str, Tensor] | None:
        """Return what sites may fetch."""
        with self._lock:
            return self._offered.get(ref)

    def begin(self, site: str, ref: str, size: int) -> _Upload | None:
        """Return where an update goes; None: it is here already. A site has one on its way at a time.

        Raises:
            OSError: there is no room for it.
        """
        with self._lock:
            if self._arrived.get(site, ("",))[0] == ref:
                return None
            before = self._uploads.get(site)
            if before and before.ref == ref and before.space.size == size:
                return before
            if before and before.lock.acquire(blocking=False):
                self._spaces.give_back(before.space)
                before.lock.release()
            upload = self._uploads[site] = _Upload(ref, self._spaces.take(size))
            return upload

    def upload(self, site: str, ref: str) -> _Upload | None:
        """Return where an update goes that was begun; None: it was not."""
        with self._lock:
            upload = self._uploads.get(site)
            return upload if upload and upload.ref == ref else None

    def take(self, site: str, upload: _Upload) -> None:
        """Take an update that has arrived.

        Raises:
            FederationError: it is not tensors.
        """
        tensors = None
        try:
            tensors = read_body(self._spaces.read(upload.space))
            inspect_early(tensors.values())
        finally:
            with self._lock:
                # Another one may have been begun meanwhile.
                if self._uploads.get(site) is upload:
                    del self._uploads[site]
                    if tensors is not None:
                        self._arrived[site] = (upload.ref, tensors)

    def _take_connections(self) -> None:
        while True:
            try:
                message, numbers, _, _ = socket.recv_fds(self._door, 1, 1)
            except OSError:
                return
            if not message:
                return
            for number in numbers:
                if self._room.acquire(blocking=False):
                    threading.Thread(target=self._serve, args=(number,), name="direct", daemon=True).start()
                else:
                    os.close(number)

    def _serve(self, number: int) -> None:
        """Answer a connection's requests. Where it breaks, its site tries again, or has FLARE move the tensors."""
        try:
            with socket.socket(fileno=number) as plain, contextlib.suppress(OSError, ValueError):
                plain.settimeout(STEP_SECONDS)
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    _Requests(connection, name_of_peer(connection), self)
        finally:
            self._room.release()


class _Requests(BaseHTTPRequestHandler):
    """Answers a site's requests.

    ``GET`` gives what is offered, from where its ``Range`` begins. ``HEAD`` begins an update, and tells how much of it
    is here; ``PUT`` takes the rest, whose place ``Content-Range`` tells.
    """

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "oncofed", ""
    rbufsize = 0  # what follows the headers is read from the connection itself
    client_address: Any
    server: Any

    def __init__(self, connection: ssl.SSLSocket, site: str, counter: TransferServer) -> None:
        self._site, self._counter = site, counter
        super().__init__(connection, (site, 0), None)  # type: ignore[arg-type]

    def parse_request(self) -> bool:
        """Refuse whoever does not take part, whatever is asked for."""
        if not super().parse_request():
            return False
        if self._counter.is_welcome(self._site) and self.path.startswith(PATH):
            self._ref = self.path.removeprefix(PATH)
            return True
        self._refuse(http.HTTPStatus.FORBIDDEN)
        return False

    def do_GET(self) -> None:
        """Give what is offered."""
        tensors = self._counter.offered(self._ref)
        if tensors is None:
            self._refuse(http.HTTPStatus.NOT_FOUND)
            return
        body, start = Serialized(tensors), self._start("Range", "bytes=")
        self.send_response(http.HTTPStatus.PARTIAL_CONTENT if start else http.HTTPStatus.OK)
        self.send_header("Content-Length", str(body.size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{body.size - 1}/{body.size}")
        self.end_headers()
        for part in body.parts(start):
            self.connection.sendall(part)

    def do_HEAD(self) -> None:
        """Begin an update, or tell how much of it is here."""
        size = int(self.headers.get(LENGTH, "0"))
        if not 0 < size <= self._counter.largest:
            self._refuse(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            upload = self._counter.begin(self._site, self._ref, size)
        except OSError:
            self._refuse(http.HTTPStatus.INSUFFICIENT_STORAGE)
            return
        if upload is None:
            self._answer(http.HTTPStatus.OK, size)
        else:
            self._answer(http.HTTPStatus.ACCEPTED, upload.space.filled)

    def do_PUT(self) -> None:
        """Take an update that was begun, or the rest of it."""
        upload, start = self._counter.upload(self._site, self._ref), self._start("Content-Range", "bytes ")
        if upload is None:
            self._refuse(http.HTTPStatus.CONFLICT)
            return
        size = upload.space.size
        with upload.lock:
            # A connection that was cut may not have noticed yet, or another update was begun.
            if start != upload.space.filled or self._counter.upload(self._site, self._ref) is not upload:
                self._refuse(http.HTTPStatus.CONFLICT)
                return
            while upload.space.filled < size:
                if not upload.space.receive(self.connection):
                    self.close_connection = True
                    return
            try:
                self._counter.take(self._site, upload)
            except FederationError as error:
                _log.warning("%s: %s", self._site, error)
                self._refuse(http.HTTPStatus.BAD_REQUEST)
                return
        self._answer(http.HTTPStatus.CREATED, size)

    def _start(self, header: str, unit: str) -> int:
        """Return the first byte that a header names."""
        return int((self.headers.get(header) or f"{unit}0-").removeprefix(unit).split("-")[0])

    def _answer(self, status: http.HTTPStatus, received: int) -> None:
        self.send_response(status)
        self.send_header(OFFSET, str(received))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: http.HTTPStatus) -> None:
        """Refuse a request, of whose body nothing may have been read."""
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
        """Write nothing: FLARE's log tells of the message that the tensors belong to."""
        del format, args
