"""Flower beside: its server and four sites on loopback, in an environment of their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import time
import venv
from collections.abc import Iterator
from pathlib import Path

from oncofed.alliance.local import free_port
from oncofed.processes import process_environment, stop_processes

VERSION = "1.42.0"
_APP = Path(__file__).parent / "flower_app"
_START_SECONDS = 60.0
_RUN_SECONDS = 300.0


def measure_flower(floats: int, sites: int, rounds: int, folder: Path) -> list[float]:
    """Return the wall time in seconds of each round of Flower's FedAvg whose sites have nothing to do.

    Unlike the others it runs without TLS, in Flower's own favour.

    Args:
        floats: size of the model.
        sites: how many.
        rounds: how many.
        folder: for its environment and files, new.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed or run here.
    """
    programs = _install(folder / "environment")
    temporary = folder / "tmp"
    environment = process_environment(temporary, sites + 1)
    environment |= {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    address = f"127.0.0.1:{free_port()}"
    _configure(folder / "home", address)
    try:
        with contextlib.ExitStack() as stack:
            arguments = ["--insecure", *_at(address)]
            stack.enter_context(_started("flower-superlink", arguments, environment, folder / "server.txt", address))
            for number in range(sites):
                own = f"127.0.0.1:{free_port()}"
                arguments = ["--insecure", "--superlink", address, *_at(own), "--node-config", f"number={number}"]
                log = folder / f"site-{number + 1}.txt"
                stack.enter_context(_started("flower-supernode", arguments, environment, log, own))
            times = folder / "times.json"
            settings = f'sites={sites} floats={floats} rounds={rounds} times="{times}"'
            command = [_program("flwr", environment), "run", str(_APP), "here", "--stream", "--run-config", settings]
            output = stack.enter_context((folder / "run.txt").open("wb"))
            subprocess.run(command, check=True, timeout=_RUN_SECONDS, env=environment, stdout=output, stderr=output)
            ends = json.loads(times.read_text(encoding="utf-8"))
    finally:
        stop_processes(temporary)
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def _install(folder: Path) -> Path:
    """Make an environment with Flower and return its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", f"flwr=={VERSION}"]
    subprocess.run(command, check=True, capture_output=True)
    return programs


def _configure(home: Path, address: str) -> None:
    home.mkdir(parents=True)
    text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def _at(address: str) -> list[str]:
    host, _, port = address.partition(":")
    return ["--host", host, "--port", port]


def _program(name: str, environment: dict[str, str]) -> str:
    return str(Path(environment["PATH"].split(os.pathsep)[0]) / name)


@contextlib.contextmanager
def _started(
    program: str, arguments: list[str], environment: dict[str, str], log: Path, address: str
) -> Iterator[None]:
    """Run one of Flower's services; go on when it listens."""
    command = [_program(program, environment), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_for(address, process, log)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)
    raise OSError(f"it did not start; its log ends: {log.read_text(encoding='utf-8')[-300:]}")
