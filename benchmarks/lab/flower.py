"""Flower as a baseline, in a separate environment."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from environment import with_package
from harness.bench import Bench
from harness.results import Baseline
from oncofed.alliance.local import free_port
from oncofed.processes import process_environment, stop_processes

VERSION = "1.42.0"
_APP = Path(__file__).parent / "flower_app"
_START_SECONDS = 60.0
_RUN_SECONDS = 300.0


def flower_baseline(bench: Bench, what: str, measure: Callable[[], list[float]]) -> Baseline:
    """Return Flower's seconds, or why they are missing.

    Args:
        bench: of the suite.
        what: of Flower is measured, such as ", without TLS".
        measure: installs and runs it.
    """
    name = f"Flower {VERSION}{what}"
    if bench.quick:
        return Baseline(name=name, missing="left out of a quick run, for it is installed first")
    bench.doing("Flower")
    try:
        return Baseline(name=name, samples=measure())
    except (OSError, subprocess.SubprocessError) as error:
        return Baseline(name=name, missing=f"it cannot be installed or run here: {type(error).__name__}")


def measure_flower(floats: int, sites: int, rounds: int, folder: Path) -> list[float]:
    """Return seconds of rounds of Flower's FedAvg without training.

    Unlike the others it runs without TLS, in Flower's own favour.

    Args:
        floats: size of the model.
        sites: how many.
        rounds: how many.
        folder: for its environment and files, new.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed or run here.
    """
    temporary = folder / "tmp"
    environment = _environment(folder, temporary, sites + 1, f"flwr=={VERSION}")
    address = f"127.0.0.1:{free_port()}"
    _configure(folder / "home", f'address = "{address}"\ninsecure = true\n')
    try:
        with contextlib.ExitStack() as stack:
            arguments = ["--insecure", *_at(address)]
            stack.enter_context(_started("flower-superlink", arguments, environment, folder / "server.txt", address))
            for number in range(sites):
                own = f"127.0.0.1:{free_port()}"
                arguments = ["--insecure", "--superlink", address, *_at(own), "--node-config", f"number={number}"]
                log = folder / f"site-{number + 1}.txt"
                stack.enter_context(_started("flower-supernode", arguments, environment, log, own))
            return _run(floats, sites, rounds, folder, environment)
    finally:
        stop_processes(temporary)


def simulate_flower(floats: int, sites: int, rounds: int, folder: Path) -> list[float]:
    """Return seconds of rounds of Flower's simulation without training.

    Args:
        floats: size of the model.
        sites: how many.
        rounds: how many.
        folder: for its environment and files; an existing environment is used again.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed or run here.
    """
    temporary = folder / "tmp"
    environment = _environment(folder, temporary, sites + 1, f"flwr[simulation]=={VERSION}")
    _configure(folder / "home", f"options.num-supernodes = {sites}\n")
    # Ray names sockets below this folder, with names that are too long for a deep one.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as sockets:
        try:
            return _run(floats, sites, rounds, folder, {**environment, "RAY_TMPDIR": sockets})
        finally:
            stop_processes(temporary)  # Flower leaves its server running


def measure_flower_masks(floats: int, sites: int, repeats: int, folder: Path) -> list[float]:
    """Return a site's seconds for the masks of SecAgg+, of the processor.

    Args:
        floats: size of the model.
        sites: whose masks are added, its own among them.
        repeats: samples.
        folder: for its environment, new.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be installed or run here.
    """
    temporary = folder / "tmp"
    environment = _environment(folder, temporary, 1, f"flwr=={VERSION}")
    command = [_program("python", environment), str(_APP / "masks.py"), str(floats), str(sites), str(repeats)]
    done = subprocess.run(command, check=True, timeout=_RUN_SECONDS, env=environment, capture_output=True)
    return [float(seconds) for seconds in json.loads(done.stdout)]


def _run(floats: int, sites: int, rounds: int, folder: Path, environment: dict[str, str]) -> list[float]:
    """Run the app, and return the seconds of each round."""
    times = folder / "times.json"
    times.unlink(missing_ok=True)
    settings = f'sites={sites} floats={floats} rounds={rounds} times="{times}"'
    command = [_program("flwr", environment), "run", str(_APP), "here", "--stream", "--run-config", settings]
    with (folder / "run.txt").open("wb") as output:
        subprocess.run(command, check=True, timeout=_RUN_SECONDS, env=environment, stdout=output, stderr=output)
    ends = json.loads(times.read_text(encoding="utf-8"))
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def _environment(folder: Path, temporary: Path, processes: int, package: str) -> dict[str, str]:
    """Make a virtual environment with Flower, and return its variables."""
    programs = with_package(folder / "environment", package)
    environment = process_environment(temporary, processes)
    return environment | {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _configure(home: Path, settings: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    text = f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{settings}'
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
    """Run one of Flower's services, once it listens."""
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
