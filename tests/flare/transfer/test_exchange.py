"""Transfers over real connections with real certificates."""

from __future__ import annotations

import gc
import http
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
import torch
from nvflare.apis.signal import Signal

from connect_proxy import ConnectProxy
from direct_ends import JOB, LARGEST, ORIGIN, CutLink, Exchange, credentials
from oncofed.flare.transfer import client
from oncofed.flare.transfer.protocol import LENGTH, PATH, tls_context
from oncofed.messages.chunks import ChunkedTensors
from oncofed.models.weights import Weights
from oncofed.proxy import PROXY_VARIABLE

MODEL: Weights = {"a": torch.randn(700, 1000), "b": torch.arange(9), "c": torch.randn(33).to(torch.bfloat16)}
MB = 1_000_000

MakeLink = Callable[..., CutLink]


def same(one: Weights | None, other: Weights) -> bool:
    return one is not None and one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in other)


def test_a_site_downloads_tensors_until_they_are_withdrawn(exchange: Exchange) -> None:
    exchange.server.publish("model", MODEL)
    north = exchange.client()
    assert same(north.fetch(ORIGIN, "model"), MODEL)
    assert same(exchange.client("south").fetch(ORIGIN, "model"), MODEL)
    exchange.server.withdraw("model")
    assert north.fetch(ORIGIN, "model") is None
    assert north.fetch("south.other", "model") is None
    assert not exchange.others


def test_an_upload_belongs_to_its_site(exchange: Exchange) -> None:
    exchange.client().publish("update", MODEL)
    assert exchange.server.fetch(f"south.{JOB}", "update") is None
    assert exchange.server.fetch(f"north.{JOB}", "another") is None
    assert same(exchange.server.fetch(f"north.{JOB}", "update"), MODEL)
    assert exchange.server.fetch(f"north.{JOB}", "update") is None


def test_an_upload_is_inspected_before_it_is_fetched(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange.client().publish("update", MODEL)
    arrived = exchange.server.fetch(f"north.{JOB}", "update")
    monkeypatch.setattr("oncofed.messages.chunks.sum_of_squares", lambda value: pytest.fail("nobody looked before"))
    joined = ChunkedTensors(arrived)
    assert all(joined.look(name).finite for name in joined)


def test_many_sites_at_once(exchange: Exchange) -> None:
    updates = {f"{number}": {"a": torch.full((300_000,), float(number))} for number in range(12)}
    exchange.server.publish("model", MODEL)
    fetched: list[bool] = []

    def site(number: str) -> None:
        one = exchange.client("north" if int(number) % 2 else "south")
        fetched.append(same(one.fetch(ORIGIN, "model"), MODEL))
        one.publish(number, updates[number])

    for pair in range(0, 12, 2):
        threads = [threading.Thread(target=site, args=(f"{number}",)) for number in (pair, pair + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, name in ((pair, "south"), (pair + 1, "north")):
            assert same(exchange.server.fetch(f"{name}.{JOB}", f"{number}"), updates[f"{number}"])
    assert fetched == [True] * 12


def test_an_update_in_use_is_not_overwritten(exchange: Exchange) -> None:
    north = exchange.client()
    held = []
    for number in range(3):
        north.publish(f"{number}", {"a": torch.full((300_000,), float(number))})
        held.append(exchange.server.fetch(f"north.{JOB}", f"{number}"))
    assert [float(update["a"].mean()) for update in held if update] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("up", [False, True])
def test_a_cut_transfer_resumes(exchange: Exchange, cut_link: MakeLink, up: bool) -> None:
    between = cut_link(MB, MB, 300_000, up=up)
    north = exchange.client(port=between.port)
    if up:
        north.publish("update", MODEL)
        assert same(exchange.server.fetch(f"north.{JOB}", "update"), MODEL)
    else:
        exchange.server.publish("model", MODEL)
        assert same(north.fetch(ORIGIN, "model"), MODEL)
    assert between.connections == 4


def test_a_blocked_connection_is_given_up_soon(
    exchange: Exchange, cut_link: MakeLink, caplog: pytest.LogCaptureFixture
) -> None:
    north = exchange.client(port=cut_link(*[0] * 1000).port)
    assert north.fetch(ORIGIN, "model") is None
    assert "goes through FLARE's messages" in caplog.text


def test_a_site_waits_while_the_server_has_too_many_connections(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FIRST_PATIENCE_SECONDS", 20.0)
    exchange.server._free_connections = threading.BoundedSemaphore(1)
    exchange.server.publish("model", MODEL)
    context = tls_context(credentials(exchange.kits / "south"), JOB, False)
    idle = context.wrap_socket(socket.create_connection(("localhost", exchange.port)))
    left = threading.Event()

    def leave() -> None:
        left.set()
        idle.close()

    threading.Timer(0.5, leave).start()
    assert same(exchange.client().fetch(ORIGIN, "model"), MODEL)
    assert left.is_set()


def test_a_site_waits_for_a_job_that_has_not_started(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_PATIENCE_SECONDS", 20.0)
    folder = exchange.jobs.folders.pop(JOB)
    exchange.server.publish("model", MODEL)
    threading.Timer(0.5, lambda: exchange.jobs.folders.update({JOB: folder})).start()
    assert same(exchange.client().fetch(ORIGIN, "model"), MODEL)


def test_a_server_without_direct_connections_is_tried_once(
    kits: Path, caplog: pytest.LogCaptureFixture, exchange: Exchange
) -> None:
    caplog.set_level(logging.INFO)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    startup = kits / "localhost" / "startup"
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    taken = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            taken.append(plain)
            context.wrap_socket(plain, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        north = exchange.client(port=listener.getsockname()[1])
        assert north.fetch(ORIGIN, "model") is None
        assert north.fetch(ORIGIN, "model") is None
    assert len(taken) == 1
    assert "does not take direct connections" in caplog.text


def test_an_aborted_transfer_ends_at_once(exchange: Exchange) -> None:
    exchange.server.publish("model", MODEL)
    stop = Signal()
    stop.trigger("stopped")
    north = exchange.client()
    assert north.fetch(ORIGIN, "model", stop) is None
    north.publish("update", MODEL, stop)
    assert exchange.server.fetch(f"north.{JOB}", "update") is None


def test_a_hospitals_proxy_is_used(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ConnectProxy(exchange.port, "clinic:secret")
    monkeypatch.setenv(PROXY_VARIABLE, f"http://clinic:secret@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "")
    exchange.server.publish("model", MODEL)
    assert same(exchange.client().fetch(ORIGIN, "model"), MODEL)
    assert len(proxy.opened) == 1
    proxy.close()


ATTACK = "fetching a model, or bringing an update, over a connection of one's own"


@pytest.mark.attack(ATTACK, by="whoever has a certificate of another alliance", logged="nowhere: TLS ends it")
def test_a_stranger_gets_nothing(exchange: Exchange, other_kits: Path) -> None:
    exchange.server.publish("model", MODEL)
    stranger = exchange.client(kits=other_kits)
    assert stranger.fetch(ORIGIN, "model") is None
    stranger.publish("update", MODEL)
    assert exchange.server.fetch(f"north.{JOB}", "update") is None


@pytest.mark.attack(ATTACK, by="a person, with an engineer's certificate", logged="the person's own log")
def test_a_person_is_no_site(exchange: Exchange) -> None:
    exchange.server.publish("model", MODEL)
    person = next(kit.name for kit in exchange.kits.iterdir() if "@" in kit.name)
    engineer = exchange.client(person)
    assert engineer.fetch(ORIGIN, "model") is None
    engineer.publish("update", MODEL)
    assert exchange.server.fetch(f"{person}.{JOB}", "update") is None


@pytest.mark.attack(ATTACK, by="a site that was revoked meanwhile", logged="the site's own log")
def test_a_banned_site_gets_nothing(exchange: Exchange, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exchange.server.publish("model", MODEL)
    exchange.participants.discard("north")
    north = exchange.client()
    assert north.fetch(ORIGIN, "model") is None
    north.publish("update", MODEL)
    assert exchange.server.fetch(f"north.{JOB}", "update") is None
    assert "Forbidden" in caplog.text


@pytest.mark.attack(
    "answering sites in the server's place", by="another member of the alliance", logged="the site's own log"
)
def test_a_site_sends_nothing_to_a_false_server(exchange: Exchange, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exchange.client(server="federation.example.org").publish("update", MODEL)
    assert exchange.server.fetch(f"north.{JOB}", "update") is None
    assert "not federation.example.org answers there" in caplog.text


@pytest.mark.attack("filling the server's disk with an update", by="a site", logged="the site's own log")
def test_a_too_large_update_is_refused_before_it_is_sent(exchange: Exchange, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    exchange.client().publish("update", {"a": torch.zeros(LARGEST // 4 + 1)})
    assert "Too Large" in caplog.text
    assert exchange.server.fetch(f"north.{JOB}", "update") is None


# A server that does not read what it refuses may end the connection before its answer is there.
REFUSED_UNREAD = 0


def request(exchange: Exchange, method: str, ref: str, headers: dict[str, str], body: bytes = b"") -> int:
    """Return the status of a site's own request."""
    context = tls_context(credentials(exchange.kits / "north"), JOB, False)
    with context.wrap_socket(socket.create_connection(("localhost", exchange.port))) as secured:
        connection = HTTPConnection("localhost")
        connection.sock = secured
        try:
            connection.request(method, PATH + ref, body=body or None, headers=headers)
            return connection.getresponse().status
        except ConnectionError:
            return REFUSED_UNREAD


@pytest.mark.attack("an update that is not tensors", by="a site", logged="the job's log at the server")
def test_a_body_without_tensors_is_refused(exchange: Exchange) -> None:
    assert request(exchange, "HEAD", "update", {LENGTH: "100"}) == http.HTTPStatus.ACCEPTED
    headers = {"Content-Range": "bytes 0-99/100"}
    assert request(exchange, "PUT", "update", headers, bytes(100)) == http.HTTPStatus.BAD_REQUEST
    assert exchange.server.fetch(f"north.{JOB}", "update") is None
    exchange.client().publish("update", MODEL)
    assert same(exchange.server.fetch(f"north.{JOB}", "update"), MODEL)


def test_a_part_with_a_wrong_offset_is_refused(exchange: Exchange) -> None:
    headers, refused = {"Content-Range": "bytes 50-99/100"}, (http.HTTPStatus.CONFLICT, REFUSED_UNREAD)
    assert request(exchange, "PUT", "update", headers, bytes(50)) in refused
    assert request(exchange, "HEAD", "update", {LENGTH: "100"}) == http.HTTPStatus.ACCEPTED
    assert request(exchange, "PUT", "update", headers, bytes(50)) in refused
    assert request(exchange, "HEAD", "update", {LENGTH: "100"}) == http.HTTPStatus.ACCEPTED


@pytest.mark.parametrize(("method", "path"), [("POST", "update"), ("GET", "nothing"), ("DELETE", "update")])
def test_other_requests_are_answered(exchange: Exchange, method: str, path: str) -> None:
    assert request(exchange, method, path, {}) >= http.HTTPStatus.BAD_REQUEST


def test_a_newer_update_replaces_an_incomplete_one(exchange: Exchange) -> None:
    assert request(exchange, "HEAD", "older", {LENGTH: "100"}) == http.HTTPStatus.ACCEPTED
    exchange.client().publish("newer", MODEL)
    assert same(exchange.server.fetch(f"north.{JOB}", "newer"), MODEL)
    assert exchange.server.fetch(f"north.{JOB}", "older") is None


def test_a_server_keeps_no_file_open_after_its_job(exchange: Exchange) -> None:
    before = psutil.Process().num_fds()
    north = exchange.client()
    for number in range(3):
        north.publish(f"{number}", {"a": torch.ones(300_000)})
    exchange.server.close()
    gc.collect()
    assert psutil.Process().num_fds() <= before
