"""Seconds that an alliance's own commands take: kits for 50 sites, a site's doctor, and a killed site's way back.

Kits are made twice: sealed for their site's age key, and with a password each, for which age takes a second or two of
a processor on purpose. A site is back when the server lists it anew after its FLARE process was killed; its service,
which an admin starts, starts it again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyrage

from figures import hand_over, options
from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.local import free_port
from oncofed.alliance.sealing import sign_folder
from oncofed.alliance.spec import AllianceSpec
from oncofed.job.remote import Engineer
from oncofed.site.service import is_connected, service_state

_SITES = 50
_TARGETS = {"provision_s": 60.0, "doctor_s": 10.0, "back_s": 15.0}
_LONGEST_WAIT = 120.0


def _run(*arguments: str | Path, cwd: Path) -> tuple[float, str]:
    """Run a command, and return its seconds and what it printed; a doctor that finds faults ends with 1."""
    began = time.monotonic()
    command = [sys.executable, "-m", "oncofed.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return time.monotonic() - began, done.stdout


def _provision(folder: Path, with_keys: bool) -> float:
    folder.mkdir()
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    sealed_for = {"recipient": recipient} if with_keys else {}
    alliance = {"name": "large", "sites": {f"site-{number}": sealed_for for number in range(_SITES)}, **sealed_for}
    (folder / "alliance.yaml").write_text(json.dumps(alliance))
    (folder / "root.txt").write_text("correct horse battery\n")
    seconds, _ = _run(
        "alliance", "provision", "alliance.yaml", "--home", "home", "--password-file", "root.txt", cwd=folder
    )
    made = len(list((folder / "home" / "kits").iterdir()))
    assert made == _SITES + 3, made
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
            raise SystemExit(f"not within {_LONGEST_WAIT:.0f} s: {what}")
        time.sleep(0.1)


def _flare_process(kit: Path) -> psutil.Process:
    children = psutil.Process(service_state(kit).pid).children(recursive=True)
    return next(child for child in children if "client_train" in " ".join(child.cmdline()))


def _seconds_until_back(kit: Path, engineer: Engineer) -> float:
    """Kill a site's FLARE process, and return how long it takes until the server hears of a new one."""
    before = service_state(kit).restarts
    killed = time.time()
    _flare_process(kit).kill()
    _wait(lambda: service_state(kit).restarts > before, "it is started again")
    again = time.time()
    _wait(lambda: is_connected(kit) and engineer.connected()["east"].timestamp() > again, "the server hears of it")
    return time.time() - killed


def main() -> None:
    """Measure, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument(
        "--runs", type=int, default=3, help="times that the doctor looks and a site is killed (default 3)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oncofed-kits-") as temporary:
        folder = Path(temporary)
        with_keys, with_passwords = _provision(folder / "keys", True), _provision(folder / "passwords", False)
        kits = _small_alliance(folder / "small")
        try:
            for name in ("localhost", "east"):
                _run("site", "start", "--folder", kits[name], "--background", cwd=folder)
            _wait(lambda: is_connected(kits["east"]), "the site is connected")
            doctor = [_run("site", "doctor", "--folder", kits["east"], cwd=folder)[0] for _ in range(arguments.runs)]
            with Engineer(kits["engineer@oncofed.org"]) as engineer:
                _wait(lambda: "east" in engineer.connected(), "the site is registered")
                back = [_seconds_until_back(kits["east"], engineer) for _ in range(arguments.runs)]
        finally:
            for name in ("east", "localhost"):
                _run("site", "stop", "--folder", kits[name], cwd=folder)
    record: dict[str, Any] = {
        "benchmark": "kits",
        "unit": "s",
        "kits": _SITES + 3,
        "provision_s": with_keys,
        "provision_with_passwords_s": with_passwords,
        "doctor_s": doctor,
        "back_s": back,
        "targets": _TARGETS,
    }
    hand_over(record, arguments, _table(record))


def _table(record: dict[str, Any]) -> str:
    targets = record["targets"]
    rows = [
        (f"{record['kits']} kits, for age keys", record["provision_s"], targets["provision_s"]),
        (f"{record['kits']} kits, with passwords", record["provision_with_passwords_s"], targets["provision_s"]),
        ("oncofed site doctor", statistics.median(record["doctor_s"]), targets["doctor_s"]),
        ("a killed site is back", statistics.median(record["back_s"]), targets["back_s"]),
    ]
    return "\n".join(f"{name:26}{seconds:6.1f} s   target {target:.0f}" for name, seconds, target in rows)


if __name__ == "__main__":
    main()
