"""HTTP CONNECT through a hospital's proxy (RFC 9110, 9.3.6)."""

from __future__ import annotations

import base64
import socket
from urllib.parse import SplitResult, unquote, urlsplit

from oncofed.errors import TransferError

# Environment variable of the proxy for TLS web sockets, which FLARE's processes use.
PROXY_VARIABLE = "wss_proxy"
_LONGEST_ANSWER = 65_536


def parse_proxy(url: str) -> SplitResult:
    """Parse a proxy's address, ``http://[USER:PASSWORD@]HOST:PORT``.

    Raises:
        ValueError: not such an address; the message does not contain the password.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port or parts.path.strip("/") or parts.query:
        raise ValueError("expected http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
    return parts


def open_tunnel(proxy: str, host: str, port: int, timeout: float) -> socket.socket:
    """Connect to a server through a proxy.

    Args:
        proxy: address of the proxy.
        host: of the server; the proxy resolves the name.
        port: of the server.
        timeout: of each step, in seconds.

    Raises:
        OSError: the proxy does not answer.
        TransferError: the proxy refuses.
    """
    parts = parse_proxy(proxy)
    request = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
    if parts.username:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}")
    connection = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout)
    try:
        connection.sendall("\r\n".join([*request, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            # One byte at a time, as the bytes after the answer are the server's.
            byte = connection.recv(1)
            if not byte or len(answer) > _LONGEST_ANSWER:
                raise TransferError("the proxy hung up")
            answer += byte
        status = answer.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 1)[-1]
        if not status.startswith("2"):
            raise TransferError(f"the proxy says: {status}")
    except BaseException:
        connection.close()
        raise
    return connection
