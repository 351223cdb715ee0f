"""Start job processes as forks of a preloaded process.

The fork server (``forkserver_process``) has imported what any job needs, so that a fork starts in 0.1 s instead of 20,
and shares that memory. ``ForkServer`` starts it, and ``request_fork`` has it fork; launchers and the simulator do both.

Python's own ``multiprocessing.forkserver`` starts forks as fast and as small (measured: 50 ms, the same shared memory).
It is not used, because a job would not survive it: once the server is killed it reports status 255 of forks that still
run. Also, it serves only the program that started it; its forks import that program's main module, print where the
server prints, and belong to the process group that FLARE would kill with them. What it shares with this one comes from
the library: ``multiprocessing.connection`` and ``socket.send_fds``.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Lock

import psutil

from oncofed.processes import JOB_PROCESS

# Names, in an environment, the inherited socket of a fork server that several participants share.
FORK_SERVER_VARIABLE = "ONCOFED_FORK_SERVER"
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class JobCommand:
    """The program that a fork runs.

    It is sent over a socket, so that the system's list of processes shows no credentials.

    Attributes:
        module: run as the main program.
        arguments: of the program.
        environment: all of its environment variables.
        folder: where it runs.
        parent: process with which FLARE ends it.
    """

    module: str
    arguments: list[str]
    environment: dict[str, str] = field(repr=False)
    folder: str = field(default_factory=lambda: str(Path.cwd()))
    parent: int = field(default_factory=os.getpid)


class ForkServer:
    """A preloaded process that forks on request.

    It ends once no process can reach it and its forks have ended.

    Args:
        environment: of the server, and of its forks until each receives its own; None: this process's.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "oncofed.flare.runtime.forkserver_process"],
                stdin=theirs.fileno(),
                # PyTorch's usual check for a GPU would keep the forks from using one.
                env={**(environment or os.environ), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def fileno(self) -> int:
        """Return the socket of requests, for processes that inherit it."""
        return self._requests.fileno()

    def fork(self, command: JobCommand) -> ForkedProcess:
        """Start a process; see ``request_fork``."""
        return request_fork(self._requests, command)

    def close(self) -> None:
        """Stop requesting forks."""
        self._requests.close()

    def kill(self) -> None:
        """Kill the server; its forks keep running."""
        self.close()
        self._process.kill()
        self._process.wait()


class Shared:
    """A fork server that several runs of this process share.

    Attributes:
        requests: its socket; None: each run starts its own.
    """

    requests: socket.socket | None = None


def request_fork(server: socket.socket, command: JobCommand, output: int | None = None) -> ForkedProcess:
    """Request a fork.

    Args:
        server: a fork server's socket.
        command: what the fork runs.
        output: file for its output and errors; None: this process's streams.

    Raises:
        OSError: the server is gone.
    """
    ours, theirs = Pipe()
    try:
        with theirs:
            streams = [sys.stdout.fileno(), sys.stderr.fileno()] if output is None else [output, output]
            socket.send_fds(server, [b"fork"], [theirs.fileno(), *streams])
        ours.send(command)
        return ForkedProcess(ours.recv(), ours)
    except (EOFError, OSError) as error:
        ours.close()
        raise BrokenPipeError("the fork server was killed") from error


@dataclass
class ForkedProcess:
    """A fork, with the methods of ``subprocess.Popen`` that FLARE calls."""

    pid: int
    _status_of: Connection
    _status: int | None = None
    _lock: Lock = field(default_factory=Lock)

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        with self._lock:
            if self._status is None and self._status_of.poll():
                self._status = self._received()
                if self._status is not None:
                    self._status_of.close()
            return self._status

    def _received(self) -> int | None:
        try:
            return int(self._status_of.recv())
        except (EOFError, OSError):  # the server is gone, and nobody else knows the status
            return None if psutil.pid_exists(self.pid) else -signal.SIGKILL

    @property
    def returncode(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after that many seconds.
        """
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while (status := self.poll()) is None:
            left = min(_SECONDS_BETWEEN_LOOKS, deadline - time.monotonic())
            if left <= 0:
                raise subprocess.TimeoutExpired(JOB_PROCESS, timeout or 0.0)
            with contextlib.suppress(OSError, ValueError):  # another thread received the status and closed it
                # The end of the pipe that a killed server left is always readable.
                if self._status_of.poll(left) and self.poll() is None:
                    time.sleep(left)
        return status

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
