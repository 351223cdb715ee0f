"""Runs ``oncofed`` as users do, and finds leftovers."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from oncofed.flare.runtime.forkserver import Shared


class Outcome:
    """Exit status and output of a command.

    ``text`` is stdout and stderr with single spaces, ``output`` stdout alone.
    """

    def __init__(self, status: int, text: str, output: str) -> None:
        self.status = status
        self.text = " ".join(text.split())
        self.output = output


ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
_TESTS = Path(__file__).parent
_LAB = _TESTS.parent / "benchmarks" / "lab"
_FORKS = multiprocessing.get_context("forkserver")


def oncofed(*arguments: str | Path, home: Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in ``home``.

    That is also its user's folder and the system's temporary one. It is a separate process, forked from one that has
    imported what commands need: that takes seconds.
    """
    environment = {**ENVIRONMENT, "HOME": str(home), "TMPDIR": str(home)}
    return _run(_be_command, ["oncofed", *map(str, arguments)], home, environment, timeout)


def program(text: str, *arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in ``home``, whose modules it finds.

    Forked like a command: what commands need is imported, no plug-in is looked up.
    """
    return _run(_be_program, [text, *map(str, arguments)], home, ENVIRONMENT, 240)


def _run(
    target: Callable[..., None], words: list[str], home: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = _FORKS.Process(target=target, args=(words, home, environment, output, errors))
        _start(process)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.CompletedProcess(words, process.exitcode, output.read_text(), errors.read_text())


class Forked:
    """A command in a forked process.

    With the methods of ``subprocess.Popen`` that tests use.
    """

    def __init__(self, arguments: tuple[str | Path, ...], log: Path) -> None:
        words = ["oncofed", *map(str, arguments)]
        self._process = _FORKS.Process(target=_lead_group, args=(words, Path.cwd(), ENVIRONMENT, log, log))
        _start(self._process)
        self.pid = self._process.pid or 0
        self.kill = self._process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("oncofed", timeout or 0)
        return self.returncode


@contextlib.contextmanager
def forked(*arguments: str | Path, log: Path) -> Iterator[Forked]:
    """Start a command like ``started``, without import time.

    Its command line is not that of a command: ``left_running`` does not find it.
    """
    log.touch()
    process = Forked(arguments, log)
    try:
        yield process
    finally:
        _end(process)


def _start(process: BaseProcess) -> None:
    """Start a process as a fork.

    The first one starts the server that all are forked from, which looks for modules here and in the lab, too.
    """
    _FORKS.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as environment:
        for folder in (_LAB, _TESTS):
            environment.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        process.start()


def share_fork_server() -> None:
    """Have the federations that this process starts fork their jobs from one server."""
    if "preloaded" in sys.modules:
        Shared.requests = _requests()
    elif Shared.requests is None:
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            process = _FORKS.Process(target=_hand_over, args=(theirs,))
            _start(process)
            theirs.close()
            Shared.requests = socket.socket(fileno=reduction.recv_handle(ours))
            process.join()


def _hand_over(connection: Connection) -> None:
    """Send the socket of the shared fork server's requests."""
    reduction.send_handle(connection, _requests().fileno(), os.getppid())


def _requests() -> socket.socket:
    return importlib.import_module("preloaded").REQUESTS


def _lead_group(words: list[str], *surroundings: Any) -> None:
    """Be a command whose processes are all its own."""
    os.setsid()
    _settle(*surroundings)
    sys.argv = words
    importlib.import_module("oncofed.cli.main").main()


def _be_command(words: list[str], *surroundings: Any) -> None:
    _settle(*surroundings)
    Shared.requests = _requests()
    sys.argv = words
    importlib.import_module("oncofed.cli.main").main()


def _be_program(words: list[str], home: Path, *surroundings: Any) -> None:
    _settle(home, *surroundings)
    sys.path.insert(0, str(home))
    sys.argv = ["-c", *words[1:]]
    exec(words[0], {"__name__": "__main__"})


def _settle(home: Path, environment: dict[str, str], output: Path, errors: Path) -> None:
    """Give this process its folder, environment, output and errors."""
    for path, number in ((Path(os.devnull), 0), (output, 1), (errors, 2)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(home)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as in a new process, it follows from the environment


def command(*arguments: str | Path, before: str = "") -> list[str]:
    """Return a command line.

    ``before`` is code that its process runs first.
    """
    if before:
        return [sys.executable, "-c", f"{before}; from oncofed.cli.main import main; main()", *map(str, arguments)]
    return [sys.executable, "-m", "oncofed.cli.main", *map(str, arguments)]


@contextlib.contextmanager
def started(*arguments: str | Path, log: Path, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a new process group.

    All its processes are ended after the block.
    """
    line = command(*arguments, before=before)
    with log.open("wb") as output:
        process = subprocess.Popen(
            line, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes] | Forked) -> None:
    for member in family(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def press_ctrl_c(process: subprocess.Popen[bytes] | Forked) -> None:
    """Interrupt a command's process group, as a terminal does."""
    os.killpg(process.pid, signal.SIGINT)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def site_processes(folder: Path, site: str) -> dict[str, psutil.Process]:
    """Return FLARE's processes of a site.

    "parent" and, while a job runs, "job"; of a run in ``folder``.
    """
    found = {}
    for process, line in _command_lines():
        if str(folder) in line and f"uid={site}" in line:
            found["parent" if "client_train" in line else "job"] = process
    return found


def left_running(folder: Path) -> list[str]:
    """Return command lines of processes that use ``folder``."""
    return [line for _, line in _command_lines() if str(folder) in line]


def _command_lines() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process, " ".join(process.cmdline())


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
