"""Job processes that start at once: forks of one process that has imported what training needs.

``python -m oncofed.flare.runtime.forkserver`` imports, and then forks for each socket that it is sent through its
standard input, itself a socket. The fork reads one line of JSON (``order``) from what it was sent, and then is the
process of FLARE that the line names. Neither the arguments nor FLARE's credentials can be read from the system's list
of processes. The first process tells through the same socket the fork's number and, later, its exit status. It ends
when nobody can send it anything any more and its forks have ended.

CUDA works in no fork of a process that has initialised it. Nothing that is imported may do that; where something does,
the first process says so, and a fork runs Python anew: it takes seconds longer and can use the GPU.

Launchers and the simulator use it through ``ForkServer`` and ``Fork``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from multiprocessing import connection
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any, NoReturn

from oncofed.flare.patches.parent_pid import set_parent
from oncofed.flare.patches.proxy import use_proxy_of_environment
from oncofed.flare.patches.stream_numbers import renumber_streams
from oncofed.flare.runtime.malloc import share_one_heap
from oncofed.gpus import cuda_is_initialised
from oncofed.processes import JOB_PROCESS, THREADS_VARIABLE, name_process

# What the first round of any job needs; the rest takes milliseconds.
MODULES = (
    "oncofed.flare.controller",
    "oncofed.flare.executor",
    "nvflare.private.fed.app.client.worker_process",
    "nvflare.private.fed.app.server.runner_process",
    "nvflare.private.fed.app.simulator.simulator_worker",
    "torch._dynamo",  # the first optimizer imports it
)
# MONAI imports these where they are there: for plots and tables, which no job makes and which take a fifth of the time,
# and a reader of DICOM that no job uses, whose nvJPEG initialises CUDA as it is loaded: no fork could use a GPU.
_NOT_NEEDED = ("matplotlib", "pandas", "sklearn", "nvidia.nvimgcodec")
# How a process is called that is no fork: as an argument of this module's.
_ANEW = "anew"
# Names, in an environment, the inherited socket of a template that several participants of a machine share.
TEMPLATE_VARIABLE = "ONCOFED_JOB_TEMPLATE"
_SUSPECT = re.compile(r"nvjpeg|nvimgcodec|nvtiff|cupy|cucim")
_SECONDS_BETWEEN_LOOKS = 0.5


def order(module: str, arguments: list[str], environment: dict[str, str]) -> bytes:
    """Return the line that tells a fork what to be.

    Args:
        module: of FLARE, to run as a program.
        arguments: of the program.
        environment: all of its environment variables.
    """
    line = {"module": module, "arguments": arguments, "environment": environment}
    return json.dumps({**line, "folder": str(Path.cwd()), "parent": os.getpid()}).encode() + b"\n"


class ForkServer:
    """The process that others are forks of.

    Args:
        environment: of it and, until they are told their own, of its forks; None: this process's.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._sender, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "oncofed.flare.runtime.forkserver"],
                stdin=theirs.fileno(),
                # PyTorch's usual way to look for a GPU would keep the forks from using one.
                env={**(environment or os.environ), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def fileno(self) -> int:
        """Return the socket through which forks are asked for; processes that inherit it can ask too."""
        return self._sender.fileno()

    def fork(self, line: bytes) -> Fork:
        """Start a process; see ``ask``."""
        return ask(self._sender, line)

    def close(self) -> None:
        """Ask for nothing more. The process ends once its forks have."""
        self._sender.close()

    def kill(self) -> None:
        """End the process; its forks go on."""
        self.close()
        self._process.kill()
        self._process.wait()


def ask(sender: socket.socket, line: bytes) -> Fork:
    """Ask a template for a fork, which prints to where this process does.

    Args:
        sender: a template's socket.
        line: what the fork is to be; see ``order``.

    Raises:
        OSError: the template is gone.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            socket.send_fds(sender, [b"fork"], [theirs.fileno(), sys.stdout.fileno(), sys.stderr.fileno()])
        ours.sendall(line)
        answers = ours.makefile("rb")  # keeps the socket open
        told = answers.readline()
        if not told:
            answers.close()
            raise BrokenPipeError("the process that jobs are forks of was killed")
    return Fork(int(told), answers)


@dataclass
class Fork:
    """A fork, as much of ``subprocess.Popen`` as FLARE's launchers and its simulator use."""

    pid: int
    _answers: BufferedReader
    _status: int | None = None
    _lock: Lock = field(default_factory=Lock)

    def poll(self) -> int | None:
        """Return how it ended, as ``subprocess`` does; None while it runs."""
        with self._lock:
            if self._status is None and connection.wait([self._answers.fileno()], 0):
                told = self._answers.readline()
                if told:
                    self._status = int(told)
                elif not _is_running(self.pid):
                    self._status = -signal.SIGKILL  # nobody is left who could tell
                if self._status is not None:
                    self._answers.close()
            return self._status

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its status.

        Raises:
            subprocess.TimeoutExpired: it runs on after so many seconds.
        """
        until = time.monotonic() + (math.inf if timeout is None else timeout)
        while (status := self.poll()) is None:
            left = min(_SECONDS_BETWEEN_LOOKS, until - time.monotonic())
            if left <= 0:
                raise subprocess.TimeoutExpired(JOB_PROCESS, timeout or 0.0)
            with contextlib.suppress(ValueError):  # another thread learned of the end meanwhile
                # What a template that is gone would have said can be read at once, time and again.
                if connection.wait([self._answers.fileno()], left) and self.poll() is None:
                    time.sleep(left)
        return status

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def main() -> None:
    """Get ready, fork when asked, and in a fork run what is asked for."""
    share_one_heap()
    if _ANEW in sys.argv[1:]:
        name_process(JOB_PROCESS)
        line = _line_of_standard_input()
        _import_all()
        _be(line)
        return
    name_process("oncofed spare")
    spoilt = _import_all()
    if spoilt:
        sys.stderr.write(spoilt + "\n")
    line_of_fork = _Forks(socket.socket(fileno=os.dup(0))).serve()
    if line_of_fork is None:
        return
    if spoilt:
        _start_anew(line_of_fork)
    _be(line_of_fork)


def _be(line: bytes) -> None:
    name_process(JOB_PROCESS)
    told = json.loads(line)
    os.chdir(told.pop("folder"))
    # FLARE's process of a job ends when its parent does: that is who asked for it, not what it is a fork of.
    set_parent(told.pop("parent"))
    become(**told)


def _start_anew(line: bytes) -> NoReturn:
    """Run Python anew in this process, which is told the line through its standard input alone."""
    told = os.memfd_create("line")
    os.write(told, line)
    os.lseek(told, 0, os.SEEK_SET)
    os.dup2(told, 0)
    program = [sys.executable, "-u", "-m", "oncofed.flare.runtime.forkserver", _ANEW]
    os.execv(sys.executable, program)  # noqa: S606 - no shell is wanted


def _line_of_standard_input() -> bytes:
    with os.fdopen(os.dup(0), "rb") as told, open(os.devnull, "rb") as nothing:
        line = told.readline()
        os.dup2(nothing.fileno(), 0)
    return line


class _Forks:
    """Forks this process for each request, and tells who asked how the forks ended.

    Args:
        requests: where requests come from.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._replies: dict[int, socket.socket] = {}
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker)
        signal.signal(signal.SIGCHLD, _nothing)

    def serve(self) -> bytes | None:
        """Return in a fork what it was told, and in the first process None, once it is not needed any more."""
        watched: list[Any] = [self._requests, self._woken]
        while self._requests in watched or self._replies:
            readable, _, _ = select.select(watched, [], [])
            if self._woken in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._tell_ended()
            if self._requests in readable:
                message, sockets, _, _ = socket.recv_fds(self._requests, 16, 3)
                if not message:
                    watched.remove(self._requests)
                elif line := self._fork(*sockets):
                    return line
        return None

    def _fork(self, reply: int, output: int, errors: int) -> bytes | None:
        """Return the line that the fork was told; in the first process nothing."""
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # as the fork does: whoever is first, none is killed with this process's group
            self._replies[pid] = socket.socket(fileno=reply)
            os.close(output)
            os.close(errors)
            with contextlib.suppress(OSError):
                self._replies[pid].sendall(b"%d\n" % pid)
            return None
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for mine in (self._requests, *self._replies.values()):
            mine.close()
        for number in (self._woken, self._waker):
            os.close(number)
        for number, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
            os.dup2(number, standard)
            os.close(number)
        with socket.socket(fileno=reply) as told, told.makefile("rb") as lines:
            line = lines.readline()
        if not line.endswith(b"\n"):
            os._exit(0)  # whoever asked was killed meanwhile
        return line

    def _tell_ended(self) -> None:
        while self._replies:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            reply = self._replies.pop(pid)
            with contextlib.suppress(OSError):
                reply.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            reply.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """Let the signal's number be written to the pipe that is watched."""


def become(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run a module as the main program; what is imported stays."""
    threads = environment.get(THREADS_VARIABLE)
    if threads != os.environ.get(THREADS_VARIABLE):
        import torch  # noqa: PLC0415 - launchers import this module

        # It may name as many for each level of nested loops.
        torch.set_num_threads(int(threads.split(",")[0]) if threads else len(os.sched_getaffinity(0)))
    os.environ.clear()
    os.environ.update(environment)
    use_proxy_of_environment()
    renumber_streams()
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _import_all() -> str:
    """Import what jobs need; return what to say where that initialised CUDA, and nothing where it did not."""
    spoilt = ""
    # Looking for garbage among what is being imported takes a fifth of the time and finds none.
    gc.disable()
    with _without(_NOT_NEEDED):
        for name in MODULES:
            importlib.import_module(name)
            if not spoilt and cuda_is_initialised():
                spoilt = _what_initialised_cuda(name)
    # FLARE's own process learns of tensors with its job's classes, after it is connected: a site that sent its update
    # in that second, as happens when the process was started anew, would end it.
    from oncofed.flare.patches.own_loopback import simulate_over_own_loopback  # noqa: PLC0415 - the same
    from oncofed.flare.patches.parent_watch import watch_parent  # noqa: PLC0415 - the same
    from oncofed.flare.wire import register_tensors  # noqa: PLC0415 - launchers import this module

    register_tensors()
    watch_parent()
    simulate_over_own_loopback()
    if not spoilt and cuda_is_initialised():
        spoilt = _what_initialised_cuda("oncofed.flare.wire")
    gc.freeze()
    gc.enable()
    return spoilt


def _what_initialised_cuda(module: str) -> str:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    suspects = sorted({Path(path).name for path in re.findall(r"/\S+\.so\S*", maps) if _SUSPECT.search(path)})
    return (
        f"CUDA was initialised as {module} was imported, before there is a job: no fork of this process could use the "
        "GPU. So each job starts Python anew, which takes some seconds. Uninstall what does that; loaded here: "
        f"{', '.join(suspects) or 'no library that is known for it'}"
    )


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Have modules not be found meanwhile, where they are not imported yet."""
    absent = [name for name in names if name not in sys.modules]
    # As the language has it (reference, 5.3.1): None means that there is no such module.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


if __name__ == "__main__":
    main()
