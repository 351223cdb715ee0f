"""Kits for 50 sites, doctor, recovery of a site.

Kits are made twice: sealed for their site's age key, and with a password each, on which age spends a second or two
of a processor by design. A site has recovered when the server lists it again after its FLARE process was killed and
restarted by the site's service.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyrage

from harness.bench import Bench
from harness.results import BenchmarkError, Target
from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.local import free_port
from oncofed.alliance.sealing import sign_folder
from oncofed.alliance.session import EngineerSession
from oncofed.alliance.spec import AllianceSpec
from oncofed.site.service import is_connected, service_state

_SITES, _SITES_QUICK = 50, 3
_TARGET_PROVISION, _TARGET_DOCTOR, _TARGET_BACK = 60.0, 10.0, 15.0
_LONGEST_WAIT = 120.0


def run(bench: Bench) -> None:
    """Measure kits, the doctor, and the way back."""
    sites = _SITES_QUICK if bench.quick else _SITES
    runs = 1 if bench.quick else 3
    for what, with_keys in (("age keys", True), ("passwords", False)):
        bench.doing(f"kits, {what}")
        bench.measured(
            f"kits for {sites} sites, sealed with {what}",
            [_provision(bench.folder / what.replace(" ", "-"), sites, with_keys)],
            "s",
            settings={"sites": sites},
            target=Target(of="value", value=_TARGET_PROVISION),
        )
    kits = _small_alliance(bench.folder / "small")
    try:
        for name in ("localhost", "east"):
            _run("site", "start", "--folder", kits[name], "--background", cwd=bench.folder)
        _wait(lambda: is_connected(kits["east"]), "the site is connected")
        bench.doing("doctor")
        doctor = [_run("site", "doctor", "--folder", kits["east"], cwd=bench.folder)[0] for _ in range(runs)]
        bench.measured("oncofed site doctor", doctor, "s", target=Target(of="value", value=_TARGET_DOCTOR))
        with EngineerSession(kits["engineer@oncofed.org"]) as engineer:
            _wait(lambda: "east" in engineer.connected(), "the site is registered")
            bench.doing("a killed site")
            back = [_seconds_until_back(kits["east"], engineer) for _ in range(runs)]
        bench.measured("a killed site is back", back, "s", target=Target(of="value", value=_TARGET_BACK))
    finally:
        for name in ("east", "localhost"):
            _run("site", "stop", "--folder", kits[name], cwd=bench.folder)


def _run(*arguments: str | Path, cwd: Path) -> tuple[float, str]:
    """Return a command's seconds and output.

    Status 1 is a doctor's finding.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", "oncofed.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise BenchmarkError(done.stderr)
    return time.monotonic() - began, done.stdout


def _provision(folder: Path, sites: int, with_keys: bool) -> float:
    folder.mkdir()
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    sealed_for = {"recipient": recipient} if with_keys else {}
    alliance = {"name": "large", "sites": {f"site-{number}": sealed_for for number in range(sites)}, **sealed_for}
    (folder / "alliance.yaml").write_text(json.dumps(alliance))
    (folder / "root.txt").write_text("correct horse battery\n")
    seconds, _ = _run(
        "alliance", "provision", "alliance.yaml", "--home", "home", "--password-file", "root.txt", cwd=folder
    )
    made = len(list((folder / "home" / "kits").iterdir()))
    assert made == sites + 3, made
    return seconds


def _small_alliance(folder: Path) -> dict[str, Path]:
    spec = AllianceSpec(name="small", sites=("east",), port=free_port())
    authority = Authority.new(spec.name)
    made = provision(spec, folder, authority)
    for kit in made.iterdir():
        add_contents(kit, spec, kit.name, authority)
        sign_folder(kit, authority)
    return {kit.name: kit for kit in made.iterdir()}


def _wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _LONGEST_WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {_LONGEST_WAIT:.0f} s: {what}")
        time.sleep(0.1)


def _flare_process(kit: Path) -> psutil.Process:
    children = psutil.Process(service_state(kit).pid).children(recursive=True)
    return next(child for child in children if "client_train" in " ".join(child.cmdline()))


def _seconds_until_back(kit: Path, engineer: EngineerSession) -> float:
    """Kill a site's process; return seconds until registration."""
    before = service_state(kit).restarts
    killed = time.time()
    _flare_process(kit).kill()
    _wait(lambda: service_state(kit).restarts > before, "it is started again")
    again = time.time()
    _wait(lambda: is_connected(kit) and engineer.connected()["east"].timestamp() > again, "the server hears of it")
    return time.time() - killed
