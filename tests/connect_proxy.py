"""A proxy like those of hospitals.

It opens tunnels by HTTP CONNECT to allowed targets, for clients with the password.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator

_SECONDS = 10.0


class ConnectProxy:
    """Listens on a port of loopback until it is closed.

    Args:
        allowed: the port to which tunnels may lead.
        credentials: ``USER:PASSWORD`` that it asks for; None: nothing.
    """

    def __init__(self, allowed: int, credentials: str | None = None) -> None:
        self._allowed = allowed
        self._credentials = credentials
        self.opened: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        request = b""
        client.settimeout(_SECONDS)
        with contextlib.suppress(OSError), client:
            while b"\r\n\r\n" not in request:
                request += client.recv(1)
            method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
            if self._credentials and base64.b64encode(self._credentials.encode()) not in request:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            if method != "CONNECT" or not target.endswith(f":{self._allowed}"):
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection(("localhost", self._allowed), _SECONDS) as server:
                self.opened.append(target)
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                client.settimeout(None)
                server.settimeout(None)
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy(allowed: int, credentials: str | None = None) -> Iterator[ConnectProxy]:
    """Run a proxy while the block does."""
    running = ConnectProxy(allowed, credentials)
    try:
        yield running
    finally:
        running.close()
