"""A site's end of direct connections."""

from __future__ import annotations

import contextlib
import http
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, cast
from urllib.request import proxy_bypass

from nvflare.fuel.f3.cellnet.fqcn import FQCN
from torch import Tensor

from oncofed.errors import FederationError, TransferError
from oncofed.flare.transfer.buffers import Buffer, BufferPool
from oncofed.flare.transfer.codec import read_body
from oncofed.flare.transfer.protocol import LENGTH, OFFSET, PATH, STEP_SECONDS, alpn_protocol, peer_name
from oncofed.loopback import connect
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights
from oncofed.proxy import PROXY_VARIABLE, open_tunnel

# A broken link may recover: FLARE transfers the tensors after this long without progress. Much sooner if nothing was
# ever transferred, as with a firewall that forbids it.
_PATIENCE_SECONDS, _FIRST_PATIENCE_SECONDS = 60.0, 5.0
_SECONDS_BETWEEN_TRIES = 1.0
_log = logging.getLogger(__name__)


class _NotSupportedError(Exception):
    """The server takes no direct connections, or another one answers."""


class _RefusedError(Exception):
    """The server does not send or accept these tensors."""


class TransferClient:
    """Downloads what the server publishes, uploads what a site returns.

    Args:
        address: of the server, as FLARE's own connections have it.
        context: TLS settings.
        server: name that the other end's certificate must have.
        job_id: of the job.

    Attributes:
        on_fallback: called when FLARE moves tensors instead.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, *, server: str, job_id: str) -> None:
        self._address, self._context = address, context
        self._server, self._job_id = server, job_id
        self._buffers = BufferPool()
        self._is_supported = True
        self.on_fallback: Callable[[], None] = lambda: None
        self._patience = _FIRST_PATIENCE_SECONDS

    def close(self) -> None:
        """Free all buffers."""
        self._buffers.close()

    def fetch(self, origin: str, ref: str, abort: Any = None) -> Weights | None:
        """Download what the server published; None: through FLARE.

        Args:
            origin: FLARE's name of the process that published it.
            ref: its name.
            abort: FLARE's signal that ends the download.
        """
        if origin != FQCN.join([FQCN.ROOT_SERVER, self._job_id]):
            return None
        download = _Download(ref, self._buffers, abort)
        try:
            return download.content() if self._run(download, abort) else None
        except TransferError as error:
            _log.warning("from the server: %s", error)
            return None
        finally:
            download.close()

    def publish(self, ref: str, tensors: Mapping[str, Tensor], abort: Any = None) -> None:
        """Upload tensors; if that fails FLARE moves them on request."""
        if not self._run(_Upload(ref, Serialized(tensors), abort), abort):
            self.on_fallback()

    def withdraw(self, ref: str) -> None:
        """Do nothing: the server has what was uploaded."""

    def _run(self, transfer: _Download | _Upload, abort: Any) -> bool:
        """Complete a transfer, reconnecting; return whether it succeeded."""
        begun, moved = time.monotonic(), 0
        deadline = begun + self._patience
        while self._is_supported and not (abort and abort.triggered):
            try:
                with contextlib.closing(self._connect()) as connection:
                    transfer.attempt(connection)
                self._patience, took = _PATIENCE_SECONDS, time.monotonic() - begun
                _log.info("%s %.1f MB directly in %.2f s", transfer.done, transfer.moved / 1e6, took)
                return True
            except _NotSupportedError as error:  # noqa: PERF203 - each connection may break
                self._is_supported = False
                _log.info("weights go through FLARE's messages: %s", error)
            except (_RefusedError, ValueError) as error:
                _log.info("the server does not take or give this directly: %s", error)
                return False
            except (OSError, HTTPException, FederationError) as error:
                if transfer.moved > moved:
                    deadline, moved = time.monotonic() + _PATIENCE_SECONDS, transfer.moved
                if time.monotonic() > deadline:
                    _log.warning("this goes through FLARE's messages: %s", type(error).__name__)
                    self._patience = _FIRST_PATIENCE_SECONDS
                    return False
                time.sleep(_SECONDS_BETWEEN_TRIES)
        return False

    def _connect(self) -> HTTPConnection:
        host, port = self._address
        proxy = os.environ.get(PROXY_VARIABLE)
        if proxy and not proxy_bypass(host):
            plain = open_tunnel(proxy, host, port, STEP_SECONDS)
        else:
            plain = connect(host, port, STEP_SECONDS)
        try:
            secured = self._context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        connection = HTTPConnection(host, port)
        connection.sock, connection.auto_open = secured, 0  # it would open another one without TLS
        if secured.selected_alpn_protocol() != alpn_protocol(self._job_id):
            connection.close()
            raise _NotSupportedError("the server does not take direct connections")
        if peer_name(secured) != self._server:
            connection.close()
            raise _NotSupportedError(f"not {self._server} answers there")
        return connection


class _Download:
    """A download that resumes after a broken connection.

    Args:
        ref: name of the tensors.
        buffers: hands out its buffer.
        abort: ends it.
    """

    done = "fetched"

    def __init__(self, ref: str, buffers: BufferPool, abort: Any) -> None:
        self._ref, self._buffers, self._abort = ref, buffers, abort
        self._buffer: Buffer | None = None

    @property
    def moved(self) -> int:
        """Bytes that have arrived."""
        return self._buffer.filled if self._buffer else 0

    def attempt(self, connection: HTTPConnection) -> None:
        """Download what has not arrived yet."""
        connection.request("GET", PATH + self._ref, headers={"Range": f"bytes={self.moved}-"} if self.moved else {})
        response = connection.getresponse()
        if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            raise _RefusedError(response.reason)
        if self._buffer is None:
            self._buffer = self._buffers.take(int(response.headers.get("Content-Length", "")))
        # What the library read beyond the headers; it would copy the rest once more.
        self._buffer.add(response.read1(self._buffer.size - self._buffer.filled))
        while self._buffer.filled < self._buffer.size:
            if self._abort and self._abort.triggered:
                raise _RefusedError("the job was stopped")
            if not self._buffer.receive(cast("ssl.SSLSocket", connection.sock)):
                raise ConnectionResetError

    def content(self) -> Weights:
        """Return what was downloaded.

        Raises:
            TransferError: it is not tensors.
        """
        buffer, self._buffer = self._buffer, None
        assert buffer
        return read_body(self._buffers.read(buffer))

    def close(self) -> None:
        """Give back the buffer of an incomplete download."""
        if self._buffer:
            self._buffers.give_back(self._buffer)


class _Upload:
    """An upload that resumes after a broken connection.

    Args:
        ref: name of the tensors.
        body: of the requests.
        abort: ends it.

    Attributes:
        moved: bytes that were sent.
    """

    done = "brought"

    def __init__(self, ref: str, body: Serialized, abort: Any) -> None:
        self._path, self._body, self._abort = PATH + ref, body, abort
        self.moved = 0

    def attempt(self, connection: HTTPConnection) -> None:
        """Upload what the server does not have yet."""
        size = self._body.size
        connection.request("HEAD", self._path, headers={LENGTH: str(size)})
        response = _accepted(connection)
        if response.status == http.HTTPStatus.OK:
            return
        start = int(response.headers.get(OFFSET, ""))
        connection.putrequest("PUT", self._path, skip_accept_encoding=True)
        connection.putheader("Content-Length", str(size - start))
        connection.putheader("Content-Range", f"bytes {start}-{size - 1}/{size}")
        connection.endheaders()
        self.moved = max(self.moved, start)
        for part in self._body.parts(start):
            if self._abort and self._abort.triggered:
                raise _RefusedError("the job was stopped")
            connection.send(part)
            start += len(part)
            self.moved = max(self.moved, start)
        _accepted(connection)


def _accepted(connection: HTTPConnection) -> HTTPResponse:
    """Return the server's response if it accepts the request."""
    response = connection.getresponse()
    response.read()
    if response.status == http.HTTPStatus.CONFLICT:
        raise ConnectionResetError  # the server has not noticed yet that an earlier connection is closed
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise _RefusedError(response.reason)
    return response
