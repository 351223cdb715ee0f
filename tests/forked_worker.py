"""Runs pytest's workers as forks of one process that has imported what tests need, and the tests.

Each worker would import it anew for thirty CPU seconds, and so would the fork server of its commands. As a program this
is what xdist starts in place of an interpreter: it hands its standard files to that process, and ends with the fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_ADDRESS = "ONCOFED_TESTS_WORKERS"
_TESTS = Path(__file__).parent
_LAB = _TESTS.parent / "benchmarks" / "lab"


@contextlib.contextmanager
def worker_forks(tests: Sequence[str]) -> Iterator[str]:
    """Serve workers; yield the interpreter that xdist shall start.

    Args:
        tests: files and folders whose tests they run.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        address = f"{folder}/workers"
        listener.bind(address)
        listener.listen()
        os.environ[_ADDRESS] = address
        paths = [str(_LAB), str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        program = "import forked_worker, sys; forked_worker.serve(int(sys.argv[1]), sys.argv[2:])"
        line = [sys.executable, "-c", program, str(listener.fileno()), *tests]
        with subprocess.Popen(
            line,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,  # at whose end the process ends
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        ):
            listener.close()
            yield f"'{sys.executable}' -S -E '{__file__}'"


def serve(descriptor: int, tests: Sequence[str]) -> None:
    """Fork a worker for each connection to a listening socket, until standard input ends.

    Args:
        descriptor: of the socket.
        tests: files and folders; workers find the modules there imported.
    """
    importlib.import_module("preloaded")
    import pytest  # noqa: PLC0415 - the process that only starts a worker needs none of it

    # Errors are for the workers, which import again what could not be imported here.
    pytest.main(["--collect-only", "--quiet", "--capture=no", *tests])
    # Commands that are forked from here look for installed packages themselves.
    for registry in importlib.import_module("oncofed.plugins")._REGISTRIES:
        registry._is_loaded = False
    gc.collect()
    gc.freeze()
    listener = socket.socket(fileno=descriptor)
    # Nobody waits for workers, and Ctrl-C is for them.
    usual = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGCHLD, signal.SIGINT)}
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            for number, handler in usual.items():
                signal.signal(number, handler)
            listener.close()
            _work(connection)
            sys.exit()
        connection.close()


def _work(connection: socket.socket) -> None:
    """Be the interpreter that a connection asks for."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    code, folder, environment = json.loads(message)
    _fork_fork_server([*descriptors, connection.fileno()])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as in a new process, it follows from the environment
    sys.argv = ["-c"]
    exec(code, sys.modules["__main__"].__dict__)


def _fork_fork_server(descriptors: Sequence[int]) -> None:
    """Have a fork of this process be multiprocessing's fork server.

    Args:
        descriptors: what the fork closes.
    """
    from multiprocessing import forkserver, util  # noqa: PLC0415 - the program needs none of it

    server: Any = getattr(forkserver, "_forkserver")  # noqa: B009 - there is no public way to set it
    address = f"{util.get_temp_dir()}/forks"  # a folder that nobody else can enter
    alive, ours = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        pid = os.fork()
        if not pid:
            for descriptor in (ours, *descriptors):
                os.close(descriptor)
            try:
                getattr(forkserver, "main")(listener.fileno(), alive, None)  # noqa: B009 - not in its stubs
            finally:
                os._exit(0)
    os.close(alive)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, ours, pid


def main() -> None:
    """Request a worker with these standard files; wait for its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ.pop(_ADDRESS))
        request = json.dumps([sys.argv[-1], str(Path.cwd()), dict(os.environ)])
        socket.send_fds(connection, [request.encode()], [0, 1, 2])
        os.close(0)
        os.close(1)
        connection.recv(1)


if __name__ == "__main__":
    main()
