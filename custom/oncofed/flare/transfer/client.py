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

from oncofed.errors import FederationError
from oncofed.flare.transfer.buffers import Buffer, BufferPool
from oncofed.flare.transfer.codec import read_body
from oncofed.flare.transfer.protocol import LENGTH, OFFSET, PATH, STEP_SECONDS, name_of_peer, protocol
from oncofed.loopback import connect
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights
from oncofed.proxy import PROXY_VARIABLE, open_tunnel

# A link that is cut may be mended; FLARE moves the tensors where nothing went this way for so long. Where nothing ever
# did, as with a firewall between that knows better, it does so soon.
_PATIENCE_SECONDS, _FIRST_PATIENCE_SECONDS = 60.0, 5.0
_SECONDS_BETWEEN_TRIES = 1.0
_log = logging.getLogger(__name__)


class _NoWayError(Exception):
    """The server does not know direct connections, or this one leads elsewhere."""


class _RefusedError(Exception):
    """The server does not give or take these tensors."""


class TransferClient:
    """Fetches what the server offers, and brings it what a site hands in.

    Args:
        address: of the server, as FLARE's own connections have it.
        context: how it speaks TLS.
        server: whose certificate the other end is to show.
        job_id: of the job.

    Attributes:
        when_it_fails: called when FLARE is to move something instead.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, server: str, job_id: str) -> None:
        self._address, self._context = address, context
        self._server, self._job_id = server, job_id
        self._spaces = BufferPool()
        self._goes = True
        self.when_it_fails: Callable[[], None] = lambda: None
        self._patience = _FIRST_PATIENCE_SECONDS

    def close(self) -> None:
        """Give all room back."""
        self._spaces.close()

    def collect(self, origin: str, ref: str, abort: Any = None) -> Weights | None:
        """Return what the server offers; None: FLARE is to move it.

        Args:
            origin: FLARE's name of the process that offers it.
            ref: its name.
            abort: FLARE's signal that ends it.
        """
        if origin != FQCN.join([FQCN.ROOT_SERVER, self._job_id]):
            return None
        fetch = _Fetch(ref, self._spaces, abort)
        try:
            return fetch.content() if self._do(fetch, abort) else None
        except FederationError as error:
            _log.warning("from the server: %s", error)
            return None
        finally:
            fetch.close()

    def offer(self, ref: str, tensors: Mapping[str, Tensor], abort: Any = None) -> None:
        """Bring the server tensors; where that fails FLARE moves them, once the server asks for them."""
        if not self._do(_Bring(ref, Serialized(tensors), abort), abort):
            self.when_it_fails()

    def withdraw(self, ref: str) -> None:
        """Do nothing: what was brought is there."""

    def _do(self, transfer: _Fetch | _Bring, abort: Any) -> bool:
        """Return whether a transfer was done; over a new connection where one breaks, while that leads anywhere."""
        begun, moved = time.monotonic(), 0
        deadline = begun + self._patience
        while self._goes and not (abort and abort.triggered):
            try:
                with contextlib.closing(self._connect()) as connection:
                    transfer.attempt(connection)
                self._patience, took = _PATIENCE_SECONDS, time.monotonic() - begun
                _log.info("%s %.1f MB directly in %.2f s", transfer.done, transfer.moved / 1e6, took)
                return True
            except _NoWayError as error:  # noqa: PERF203 - any of them may break
                self._goes = False
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
        connection.sock, connection.auto_open = secured, 0  # another one it would open unprotected
        if secured.selected_alpn_protocol() != protocol(self._job_id):
            connection.close()
            raise _NoWayError("the server does not take direct connections")
        if name_of_peer(secured) != self._server:
            connection.close()
            raise _NoWayError(f"not {self._server} answers there")
        return connection


class _Fetch:
    """Fetches something.

    Args:
        ref: its name.
        spaces: where there is room for it.
        abort: ends it.
    """

    done = "fetched"

    def __init__(self, ref: str, spaces: BufferPool, abort: Any) -> None:
        self._ref, self._spaces, self._abort = ref, spaces, abort
        self._space: Buffer | None = None

    @property
    def moved(self) -> int:
        """Bytes that are here."""
        return self._space.filled if self._space else 0

    def attempt(self, connection: HTTPConnection) -> None:
        """Fetch what is not here yet."""
        connection.request("GET", PATH + self._ref, headers={"Range": f"bytes={self.moved}-"} if self.moved else {})
        response = connection.getresponse()
        if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            raise _RefusedError(response.reason)
        if self._space is None:
            self._space = self._spaces.take(int(response.headers.get("Content-Length", "")))
        # What the library read beyond the headers; the rest it would copy once more.
        self._space.add(response.read1(self._space.size - self._space.filled))
        while self._space.filled < self._space.size:
            if self._abort and self._abort.triggered:
                raise _RefusedError("the job was stopped")
            if not self._space.receive(cast("ssl.SSLSocket", connection.sock)):
                raise ConnectionResetError

    def content(self) -> Weights:
        """Return what is here now.

        Raises:
            FederationError: it is not tensors.
        """
        space, self._space = self._space, None
        assert space
        return read_body(self._spaces.read(space))

    def close(self) -> None:
        """Give back the room of what is not complete."""
        if self._space:
            self._spaces.give_back(self._space)


class _Bring:
    """Brings something.

    Args:
        ref: its name.
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
        """Bring what is not there yet."""
        size = self._body.size
        connection.request("HEAD", self._path, headers={LENGTH: str(size)})
        response = _answer(connection)
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
        _answer(connection)


def _answer(connection: HTTPConnection) -> HTTPResponse:
    """Return what the server answers, where it agrees."""
    response = connection.getresponse()
    response.read()
    if response.status == http.HTTPStatus.CONFLICT:
        raise ConnectionResetError  # an earlier connection is still there, in the server's eyes
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise _RefusedError(response.reason)
    return response
