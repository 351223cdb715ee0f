"""A site that connects through an HTTP CONNECT proxy."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Outcome, oncofed, wait_for
from connect_proxy import proxy
from oncofed.alliance.facts import read_facts
from oncofed.alliance.local import free_port
from oncofed.alliance.site_settings import read_settings
from oncofed.errors import SpecError, TransferError
from oncofed.proxy import open_tunnel
from oncofed.site.check import Check
from oncofed.site.doctor import examine
from oncofed.site.service import is_connected


@pytest.fixture
def echo() -> int:
    """The port of an echo server."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"hello " + connection.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_a_tunnel_carries_data(echo: int) -> None:
    with proxy(echo, "me:s3cr3t") as running:
        with open_tunnel(f"http://me:s3cr3t@127.0.0.1:{running.port}", "localhost", echo, 5) as connection:
            connection.sendall(b"world")
            assert connection.recv(100) == b"hello world"
        assert running.opened == [f"localhost:{echo}"]
        with pytest.raises(TransferError, match="the proxy says: 407"):
            open_tunnel(f"http://127.0.0.1:{running.port}", "localhost", echo, 5)
        with pytest.raises(TransferError, match="the proxy says: 403"):
            open_tunnel(f"http://me:s3cr3t@127.0.0.1:{running.port}", "localhost", 1, 5)
    with pytest.raises(TransferError, match=r"hung up|says"):
        open_tunnel(f"http://127.0.0.1:{echo}", "localhost", 1, 5).close()


@pytest.mark.parametrize(
    "address", ["proxy:3128", "https://proxy:3128", "http://proxy", "socks5://proxy:1", "http://:1"]
)
def test_an_invalid_proxy_address_is_refused(kits: dict[str, Path], address: str) -> None:
    (kits["east"] / "site.yaml").write_text(f"proxy: {address}\n")
    with pytest.raises(SpecError, match="expected http://HOST:PORT"):
        read_settings(kits["east"])


def _check(folder: Path, name: str) -> Check:
    return next(check for check in examine(folder) if check.name == name)


def test_the_doctor_checks_through_the_proxy(kits: dict[str, Path], echo: int, run: Callable[..., Outcome]) -> None:
    port = read_facts(kits["east"]).port
    settings = kits["east"] / "site.yaml"
    settings.write_text(f"proxy: http://127.0.0.1:{free_port()}\n")
    assert _check(kits["east"], "proxy").found.endswith("Connection refused")
    with proxy(echo) as running:
        settings.write_text(f"proxy: http://127.0.0.1:{running.port}\n")
        found = _check(kits["east"], "proxy")
        assert (found.state, found.found.endswith("the proxy says: 403 Forbidden")) == ("fail", True)
        assert f"localhost, TCP {port}, by CONNECT" in found.advice
        # Before there is a kit.
        checks = examine(None, ("localhost", echo), proxy=f"http://127.0.0.1:{running.port}")
        assert {check.name: check.state for check in checks}["proxy"] == "ok"
    refused = run("site", "doctor", "--server", "localhost:1", "--proxy", "nowhere")
    assert (refused.status, "expected http://HOST:PORT" in refused.text) == (2, True)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_a_job_runs_through_the_proxy(
    kits: dict[str, Path], two_sites: dict[str, Path], job: Path, tmp_path: Path
) -> None:
    def command(*arguments: str | Path) -> str:
        done = oncofed(*arguments, home=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    port = read_facts(kits["east"]).port
    with proxy(port, "me:s3cr3t") as running:
        for site, data in two_sites.items():
            way = f"proxy: http://me:s3cr3t@127.0.0.1:{running.port}\n" if site == "east" else ""
            (kits[site] / "site.yaml").write_text(f"datasets: {{balls: {data}}}\n{way}")
        try:
            for name in ("localhost", "east", "west"):
                command("site", "start", "--folder", kits[name], "--background")
            wait_for(lambda: is_connected(kits["east"]) and is_connected(kits["west"]), "both are connected")
            assert _check(kits["east"], "server").found.startswith("localhost proves to be of this alliance")
            job_id = json.loads(command("job", "submit", job, "--kit", kits["eng@x.org"], "--json"))["id"]
            watched = command("job", "watch", job_id, "--kit", kits["eng@x.org"], "--json")
            assert json.loads(watched)["ended"] == "COMPLETED"
        finally:
            for name in ("east", "west", "localhost"):
                oncofed("site", "stop", "--folder", kits[name], home=tmp_path)
        # The site's connection, and that of its job.
        assert running.opened.count(f"localhost:{port}") >= 3
    for log in kits["east"].rglob("*"):
        if log.suffix in (".log", ".txt", ".json") and log.name != "site.yaml":
            assert "s3cr3t" not in log.read_text(errors="replace"), log
