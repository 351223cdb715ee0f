"""The fork server's process.

``python -m oncofed.flare.runtime.forkserver_process`` imports, then forks for each message on its standard input, a
socket. A message carries three descriptors: the connection on which the fork receives its ``JobCommand``, and its
standard output and error. On the same connection the server sends the fork's process id and, later, its exit status.

CUDA does not work in a fork of a process that has initialised it. Where an import does so in spite of ``preload``, the
server reports it, and each fork starts Python again: that takes seconds longer, but can use the GPU.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Any

from oncofed.flare.patches.parent_pid import set_parent
from oncofed.flare.patches.proxy import use_proxy_of_environment
from oncofed.flare.patches.stream_numbers import renumber_streams
from oncofed.flare.runtime.forkserver import JobCommand
from oncofed.flare.runtime.malloc import share_one_heap
from oncofed.flare.runtime.preload import import_all
from oncofed.processes import JOB_PROCESS, THREADS_VARIABLE, mark_of, name_process, show_mark

# The argument of this module in a job's process that started Python again.
_IS_JOB = "job"
SPARE_PROCESS = "oncofed spare"


def main() -> None:
    """Serve forks; in a fork, run its command."""
    share_one_heap()
    is_job = _IS_JOB in sys.argv[1:]
    name_process(JOB_PROCESS if is_job else SPARE_PROCESS)
    cuda_initialised = import_all()
    if not is_job:
        if cuda_initialised:
            sys.stderr.write(cuda_initialised + "\n")
        if not _Server(socket.socket(fileno=os.dup(0))).serve():
            return
        if cuda_initialised:
            os.execv(sys.executable, [sys.executable, "-u", "-m", __spec__.name, _IS_JOB])  # noqa: S606 - no shell
    _run(_receive_command())


def serve(requests: socket.socket) -> None:
    """Serve forks until nobody can request more.

    In a fork, run its command.
    """
    if _Server(requests).serve():
        _run(_receive_command())


class _Server:
    """Forks this process, and reports exit statuses.

    Args:
        requests: where requests arrive.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._replies: dict[int, Connection] = {}
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the signal's number is written to the pipe

    def serve(self) -> bool:
        """Return True in a fork, False at the server's end."""
        watched: list[Any] = [self._requests, self._woken]
        while self._requests in watched or self._replies:
            readable, _, _ = select.select(watched, [], [])
            if self._woken in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._report_ended()
            if self._requests in readable:
                message, descriptors, _, _ = socket.recv_fds(self._requests, 16, 3)
                if not message:
                    watched.remove(self._requests)
                elif self._fork(*descriptors):
                    return True
        return False

    def _fork(self, connection: int, output: int, errors: int) -> bool:
        """Return True in the fork.

        Its standard input is the connection.
        """
        pid = os.fork()
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # in both processes, so that neither is killed with the other's process group
        if pid:
            self._replies[pid] = Connection(connection)
            os.close(output)
            os.close(errors)
            with contextlib.suppress(OSError):
                self._replies[pid].send(pid)
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._requests.close()
        for reply in self._replies.values():
            reply.close()
        for number in (self._woken, self._waker):
            os.close(number)
        for standard, number in enumerate((connection, output, errors)):
            os.dup2(number, standard)
            os.close(number)
        return True

    def _report_ended(self) -> None:
        while self._replies:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._replies.pop(pid) as reply, contextlib.suppress(OSError):
                reply.send(os.waitstatus_to_exitcode(status))


def _receive_command() -> JobCommand:
    """Receive the command from standard input, which is empty afterwards."""
    try:
        with Connection(os.dup(0)) as connection, open(os.devnull, "rb") as empty:
            command: JobCommand = connection.recv()
            os.dup2(empty.fileno(), 0)
    except (EOFError, OSError):
        os._exit(0)  # the process that requested this one was killed
    return command


def _run(command: JobCommand) -> None:
    """Run a command as the main program; imported modules stay."""
    name_process(JOB_PROCESS)
    os.chdir(command.folder)
    set_parent(command.parent)
    threads = command.environment.get(THREADS_VARIABLE)
    if threads != os.environ.get(THREADS_VARIABLE):
        import torch  # noqa: PLC0415 - imported by now

        # The variable may hold a number for each level of nested loops.
        torch.set_num_threads(int(threads.split(",")[0]) if threads else len(os.sched_getaffinity(0)))
    shown = mark_of(os.environ)
    os.environ.clear()
    os.environ.update(command.environment)
    if mark_of(os.environ) != shown:
        show_mark()
    tempfile.tempdir = None  # it follows from the environment
    use_proxy_of_environment()
    renumber_streams()
    sys.argv = [command.module, *command.arguments]
    sys.modules.pop(command.module, None)
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
