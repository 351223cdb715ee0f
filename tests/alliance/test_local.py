"""A live alliance: what it accepts, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from oncofed.alliance import local
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.session import quiet
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import FederationError, NotEnoughSitesError
from oncofed.flare.runtime.resources import LENDING_FILE, read_lending
from oncofed.job.flare import export_job
from oncofed.job.spec import parse_job
from synthetic import make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]

_PLANTED = "from nvflare.apis.fl_component import FLComponent\n\n\nclass Planted(FLComponent):\n    pass\n"


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAlliance]:
    folder = tmp_path_factory.mktemp("live")
    sites = ("east", "west")
    datasets = {site: {"balls": make_site(folder / site, 6, number)} for number, site in enumerate(sites)}
    spec = AllianceSpec(sites=sites, port=free_port())
    with LocalAlliance(spec, folder / "alliance", datasets, folder / "logs", folder / "tmp") as alliance:
        alliance.wait_registered()
        yield alliance


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="torch is built for CUDA")
def test_a_cpu_build_of_torch_offers_no_gpu(alliance: LocalAlliance) -> None:
    for site in alliance.spec.sites:
        assert read_lending(alliance.kit(site) / "local" / LENDING_FILE).gpus == ()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_job(parse_job(write_job(tmp_path / "balls")), tmp_path / "exported")


def _submit_with_flares_own_command(alliance: LocalAlliance, job: Path) -> dict[str, object]:
    kit = alliance.kit(alliance.spec.engineer)
    arguments = ["job", "submit", "-j", str(job), "--startup-kit", str(kit)]
    done = subprocess.run(
        [sys.executable, "-m", "nvflare.cli", "--format", "json", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def _end(alliance: LocalAlliance, job_id: str) -> str:
    with quiet():
        alliance.session().monitor_job(job_id, timeout=300, poll_interval=1)
        status = str(alliance.session().get_job_status(job_id))
    assert status.startswith("FINISHED:"), status
    return status


@pytest.mark.thorough
def test_flares_own_command_submits_an_exported_job(alliance: LocalAlliance, exported: Path) -> None:
    answer = _submit_with_flares_own_command(alliance, exported)
    assert answer["status"] == "ok", answer
    assert _end(alliance, str(answer["data"]["job_id"])) == "FINISHED:COMPLETED"  # type: ignore[index]


def test_a_job_that_brings_code_is_refused(alliance: LocalAlliance, exported: Path) -> None:
    custom = exported / "app" / "custom"
    custom.mkdir()
    (custom / "planted.py").write_text(_PLANTED)
    with quiet():
        job_id = alliance.session().submit_job(str(exported))
    # FLARE stores whatever an engineer submits; it is refused where it would be deployed.
    assert _end(alliance, job_id) == "FINISHED:FAILED_TO_RUN"
    assert not list(alliance.workspace.rglob("planted.py*"))


@pytest.mark.thorough
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_job_that_names_another_class_does_not_run(alliance: LocalAlliance, exported: Path, side: str) -> None:
    # Installed everywhere and harmless, but on no list.
    config = exported / "app" / "config" / f"config_fed_{side}.json"
    values = json.loads(config.read_text())
    values["components"] = [{"id": "other", "path": "nvflare.app_common.filters.exclude_vars.ExcludeVars", "args": {}}]
    config.write_text(json.dumps(values))
    server = exported / "app" / "config" / "config_fed_server.json"
    rounds = json.loads(server.read_text())
    rounds["workflows"][0]["args"]["federation"]["rounds"]["return_s"] = 3.0
    rounds["dead_client_grace_period"] = 5.0
    server.write_text(json.dumps(rounds))
    with quiet():
        job_id = alliance.session().submit_job(str(exported))
    assert _end(alliance, job_id) != "FINISHED:COMPLETED"


def _answer(alliance: LocalAlliance, with_certificate: bool) -> bytes:
    kit = alliance.kit("east") / "startup"
    context = ssl.create_default_context(cafile=str(kit / "rootCA.pem"))
    if with_certificate:
        context.load_cert_chain(kit / "client.crt", kit / "client.key")
    try:
        with (
            socket.create_connection((alliance.spec.server, alliance.spec.port), 10) as raw,
            context.wrap_socket(raw, server_hostname=alliance.spec.server) as secured,
        ):
            secured.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return secured.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_the_servers_port_requires_a_certificate(alliance: LocalAlliance) -> None:
    assert _answer(alliance, with_certificate=True).startswith(b"HTTP/1.1")
    assert _answer(alliance, with_certificate=False) == b""


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        spec = AllianceSpec(sites=("east",), port=port)
        with pytest.raises(FederationError, match=f"port {port} is taken by another program"):
            LocalAlliance(spec, tmp_path, {"east": {}}, tmp_path, tmp_path).__enter__()


def test_a_site_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AllianceSpec(sites=("east", "west"), port=free_port())
    datasets: dict[str, dict[str, Path]] = {"east": {}, "west": {}}
    with LocalAlliance(spec, tmp_path / "alliance", datasets, tmp_path / "logs", tmp_path / "tmp") as alliance:
        os.kill(alliance.pids()["west"], signal.SIGSTOP)
        monkeypatch.setattr(local, "_START_TIMEOUT_SECONDS", 3.0)
        with pytest.raises(NotEnoughSitesError, match=r"only \d of 2 sites registered within 3 s; missing: .*west"):
            alliance.wait_registered()
        pids = list(alliance.pids().values())
    assert not any(psutil.pid_exists(pid) for pid in pids)
