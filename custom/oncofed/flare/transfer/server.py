"""The server's end of direct connections, in a job's process."""

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
from oncofed.flare.transfer.protocol import LENGTH, OFFSET, PATH, STEP_SECONDS, handoff_socket, peer_name
from oncofed.messages.chunks import inspect_early
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights

# Connections at a time; other sites try again.
_MOST_CONNECTIONS = 256
_log = logging.getLogger(__name__)


class _Upload:
    """An update that is being uploaded.

    Args:
        ref: its name.
        buffer: where it is written. Writing to it, or giving it back, needs the lock.
    """

    def __init__(self, ref: str, buffer: Buffer) -> None:
        self.ref, self.buffer = ref, buffer
        self.lock = threading.Lock()


class TransferServer:
    """Sends sites what is published, and receives their updates.

    Args:
        folder: of the job, for the buffers' files and the socket on which the main process hands off connections.
        context: TLS settings.
        is_participant: given the name in a certificate, returns whether that site takes part.
        max_bytes: of an update.
    """

    def __init__(
        self, folder: Path, context: ssl.SSLContext, *, is_participant: Callable[[str], bool], max_bytes: int
    ) -> None:
        self.is_participant, self.max_bytes = is_participant, max_bytes
        self._context = context
        self._buffers = BufferPool(folder)
        self._lock = threading.Lock()
        self._published: dict[str, Mapping[str, Tensor]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._arrived: dict[str, tuple[str, Weights]] = {}
        self._free_connections = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._handoff = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with handoff_socket(folder) as address:
            Path(address).unlink(missing_ok=True)
            self._handoff.bind(address)
            Path(address).chmod(0o600)
        threading.Thread(target=self._accept_connections, name="direct", daemon=True).start()

    def close(self) -> None:
        """Accept no more connections, and free all buffers."""
        with contextlib.suppress(OSError):
            self._handoff.shutdown(socket.SHUT_RDWR)
        self._handoff.close()
        with self._lock:
            self._published.clear()
            self._arrived.clear()
            self._uploads.clear()
        self._buffers.close()

    def publish(self, ref: str, tensors: Mapping[str, Tensor], abort: Any = None) -> None:
        """Let sites download tensors until they are withdrawn."""
        del abort
        with self._lock:
            self._published[ref] = tensors

    def withdraw(self, ref: str) -> None:
        """Start no more downloads; those that have begun are completed."""
        with self._lock:
            self._published.pop(ref, None)

    def fetch(self, origin: str, ref: str, abort: Any = None) -> Weights | None:
        """Return what a site uploaded; None: FLARE moves it.

        Args:
            origin: FLARE's name of the site's process.
            ref: its name.
            abort: not used: nothing is waited for.
        """
        del abort
        with self._lock:
            site = origin.split(".", maxsplit=1)[0]
            arrived, found = self._arrived.get(site, ("", None))
            return self._arrived.pop(site)[1] if found is not None and arrived == ref else None

    def published(self, ref: str) -> Mapping[str, Tensor] | None:
        """Return what sites may download."""
        with self._lock:
            return self._published.get(ref)

    def begin_upload(self, site: str, ref: str, size: int) -> _Upload | None:
        """Begin or resume a site's upload; None: it is complete.

        Raises:
            OSError: memory or disk is full.
        """
        with self._lock:
            if self._arrived.get(site, ("",))[0] == ref:
                return None
            before = self._uploads.get(site)
            if before and before.ref == ref and before.buffer.size == size:
                return before
            if before and before.lock.acquire(blocking=False):
                self._buffers.give_back(before.buffer)
                before.lock.release()
            upload = self._uploads[site] = _Upload(ref, self._buffers.take(size))
            return upload

    def upload(self, site: str, ref: str) -> _Upload | None:
        """Return an upload that was begun; None: it was not."""
        with self._lock:
            upload = self._uploads.get(site)
            return upload if upload and upload.ref == ref else None

    def finish_upload(self, site: str, upload: _Upload) -> None:
        """Read and inspect an update that has arrived.

        Raises:
            FederationError: it is not tensors.
        """
        tensors = None
        try:
            tensors = read_body(self._buffers.read(upload.buffer))
            inspect_early(tensors.values())
        finally:
            with self._lock:
                # Another upload may have begun meanwhile.
                if self._uploads.get(site) is upload:
                    del self._uploads[site]
                    if tensors is not None:
                        self._arrived[site] = (upload.ref, tensors)

    def _accept_connections(self) -> None:
        while True:
            try:
                message, numbers, _, _ = socket.recv_fds(self._handoff, 1, 1)
            except OSError:
                return
            if not message:
                return
            for number in numbers:
                if self._free_connections.acquire(blocking=False):
                    threading.Thread(target=self._serve, args=(number,), name="direct", daemon=True).start()
                else:
                    os.close(number)

    def _serve(self, number: int) -> None:
        """Serve a connection; its site retries if it breaks."""
        try:
            with socket.socket(fileno=number) as plain, contextlib.suppress(OSError, ValueError):
                plain.settimeout(STEP_SECONDS)
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    _Requests(connection, peer_name(connection), self)
        finally:
            self._free_connections.release()


class _Requests(BaseHTTPRequestHandler):
    """Answers a site's requests.

    ``GET`` sends what is published, from the start of its ``Range``. ``HEAD`` begins an upload, and returns how much of
    it has arrived; ``PUT`` receives the rest, from the start of its ``Content-Range``.
    """

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "oncofed", ""
    rbufsize = 0  # the body is read from the connection itself
    client_address: Any
    server: Any

    def __init__(self, connection: ssl.SSLSocket, site: str, transfers: TransferServer) -> None:
        self._site, self._transfers = site, transfers
        super().__init__(connection, (site, 0), None)  # type: ignore[arg-type]

    def parse_request(self) -> bool:
        """Refuse requests of anybody but participants."""
        if not super().parse_request():
            return False
        if self._transfers.is_participant(self._site) and self.path.startswith(PATH):
            self._ref = self.path.removeprefix(PATH)
            return True
        self._refuse(http.HTTPStatus.FORBIDDEN)
        return False

    def do_GET(self) -> None:
        """Send published tensors."""
        tensors = self._transfers.published(self._ref)
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
        """Begin an upload, or return its progress."""
        size = int(self.headers.get(LENGTH, "0"))
        if not 0 < size <= self._transfers.max_bytes:
            self._refuse(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            upload = self._transfers.begin_upload(self._site, self._ref, size)
        except OSError:
            self._refuse(http.HTTPStatus.INSUFFICIENT_STORAGE)
            return
        if upload is None:
            self._answer(http.HTTPStatus.OK, size)
        else:
            self._answer(http.HTTPStatus.ACCEPTED, upload.buffer.filled)

    def do_PUT(self) -> None:
        """Receive an upload, or the rest of it."""
        upload, start = self._transfers.upload(self._site, self._ref), self._start("Content-Range", "bytes ")
        if upload is None:
            self._refuse(http.HTTPStatus.CONFLICT)
            return
        size = upload.buffer.size
        with upload.lock:
            # This connection may have been cut unnoticed, or another upload begun.
            if start != upload.buffer.filled or self._transfers.upload(self._site, self._ref) is not upload:
                self._refuse(http.HTTPStatus.CONFLICT)
                return
            while upload.buffer.filled < size:
                if not upload.buffer.receive(self.connection):
                    self.close_connection = True
                    return
            try:
                self._transfers.finish_upload(self._site, upload)
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
        """Refuse a request whose body may not have been read."""
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
        """Log nothing: FLARE logs the message of these tensors."""
        del format, args
