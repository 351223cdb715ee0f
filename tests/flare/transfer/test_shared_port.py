"""One port for FLARE's connections and direct ones."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path

import pytest
import torch

from direct_ends import JOB, ORIGIN, Exchange, credentials
from oncofed.flare.transfer.protocol import alpn_protocol, tls_context
from oncofed.flare.transfer.shared_port import Jobs, SharedPort


def hello(context: ssl.SSLContext) -> bytes:
    """Return the first message of a connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def arrived(exchange: Exchange, count: int, seconds: float = 15.0) -> list[bytes]:
    """Return what FLARE received, once it has this length."""
    deadline = time.monotonic() + seconds
    while len(exchange.others) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return exchange.others


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x16", b"\x16\x03\x01\xff\xff", b"\x00" * 20, b"x"])
def test_other_connections_go_to_flare(exchange: Exchange, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncofed.flare.transfer.shared_port._HELLO_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", exchange.port)) as connection:
        connection.sendall(sent)
        assert arrived(exchange, 1) == [sent]


def test_flares_connections_arrive_whole(exchange: Exchange) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    first = hello(context)
    with socket.create_connection(("127.0.0.1", exchange.port)) as connection:
        connection.sendall(first)
        assert arrived(exchange, 1) == [first]


def test_a_silent_connection_blocks_no_other(exchange: Exchange) -> None:
    exchange.server.publish("model", {"a": torch.ones(3)})
    with contextlib.ExitStack() as silent:
        for _ in range(20):
            silent.enter_context(socket.create_connection(("127.0.0.1", exchange.port)))
        assert exchange.client().fetch(ORIGIN, "model")
        assert not exchange.others


def test_of_too_many_silent_connections_the_oldest_go_to_flare(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncofed.flare.transfer.shared_port._MOST_WAITING", 5)
    with contextlib.ExitStack() as silent:
        made = [silent.enter_context(socket.create_connection(("127.0.0.1", exchange.port))) for _ in range(8)]
        made[0].sendall(b"a")
        assert b"a" in arrived(exchange, 1)


def test_a_client_hello_may_arrive_in_parts(exchange: Exchange) -> None:
    first = hello(tls_context(credentials(exchange.kits / "north"), JOB, False))
    with socket.create_connection(("127.0.0.1", exchange.port)) as connection:
        for start in range(0, len(first), 100):
            connection.sendall(first[start : start + 100])
            time.sleep(0.03)
        connection.settimeout(10.0)
        assert connection.recv(5)[:1] == b"\x16"  # the job's own process answers
    assert not exchange.others


@pytest.mark.parametrize("job", [JOB[:-1] + "f", "../../../etc", JOB.upper(), "x" * 36])
def test_a_connection_for_an_unknown_job_is_closed(exchange: Exchange, job: str, kits: Path) -> None:
    context = tls_context(credentials(kits / "north"), JOB, False)
    context.set_alpn_protocols([alpn_protocol(job)])
    with socket.create_connection(("127.0.0.1", exchange.port)) as connection:
        connection.sendall(hello(context))
        connection.settimeout(10.0)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_taken_port_is_reported_and_a_closed_one_is_free(exchange: Exchange) -> None:
    with pytest.raises(OSError, match="in use"):
        SharedPort("127.0.0.1", exchange.port, Jobs())
    one = SharedPort("127.0.0.1", 0, Jobs())
    port = one.addresses[0][1]
    one.close()
    SharedPort("127.0.0.1", port, Jobs()).close()
