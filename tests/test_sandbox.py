"""What a process gave up, in a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oncofed import sandbox
from oncofed.sandbox import what_is_missing

pytestmark = pytest.mark.skipif(
    what_is_missing() is not None, reason=f"no process can be confined: {what_is_missing()}"
)

_BEGIN = """
import socket, sys, threading
from pathlib import Path
from oncofed.errors import PolicyError
from oncofed.sandbox import restrict_calls, restrict_files

def tried(action):
    try:
        return action() and "worked"
    except OSError as error:
        return type(error).__name__

def in_thread(action):
    results = []
    thread = threading.Thread(target=lambda: results.append(tried(action)))
    thread.start()
    thread.join()
    return results[0]

read = lambda: Path("/etc/passwd").read_text()
connect = lambda: socket.socket()
roots = [Path(sys.prefix), Path(sys.base_prefix), Path("/usr"), Path("/lib"), Path("/proc/self")]
"""


def _printed(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _BEGIN + script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_threads_that_start_later_are_bound_as_the_first() -> None:
    script = """
restrict_files(roots, [])
print(tried(read), in_thread(read), tried(connect), in_thread(connect))
restrict_calls()
print(tried(read), in_thread(read), tried(connect), in_thread(connect))
"""
    denied = "PermissionError"
    assert _printed(script) == [denied, denied, "worked", "worked", denied, denied, denied, denied]


def test_calls_can_be_refused_without_root() -> None:
    script = """
restrict_calls()
status = Path("/proc/self/status").read_text()
print(tried(connect), in_thread(connect), status.split("NoNewPrivs:")[1].split()[0])
"""
    assert _printed(script) == ["PermissionError", "PermissionError", "1"]


@pytest.mark.skipif(sandbox._landlock_version() >= 8, reason="this kernel binds threads that are there")
def test_with_an_unrestrictable_thread_nothing_is_confined() -> None:
    script = """
go_on = threading.Event()
thread = threading.Thread(target=go_on.wait)
thread.start()
try:
    restrict_files(roots, [])
except PolicyError as error:
    print(str(error).replace(" ", "_"), tried(read))
go_on.set()
thread.join()
restrict_files(roots, [])
print(tried(read))
"""
    refusal, before, after = _printed(script)
    assert refusal.startswith("1_other_threads_of_this_process_would_not_be_bound_by_Landlock_")
    assert (before, after) == ("worked", "PermissionError")


def test_a_kernel_that_can_binds_the_threads_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def call(number: int, *arguments: object) -> int:
        asked.append((number, *arguments))
        return 0

    monkeypatch.setattr(sandbox, "what_is_missing", lambda: None)
    monkeypatch.setattr(sandbox, "_landlock_version", lambda: 8)
    monkeypatch.setattr(sandbox, "_libc", lambda: type("C", (), {"prctl": lambda *arguments: 0}))
    monkeypatch.setattr(sandbox, "_syscall", call)
    monkeypatch.setattr(sandbox.os, "listdir", lambda path: ["1", "2"])
    monkeypatch.setattr(sandbox.os, "close", lambda number: None)
    sandbox.restrict_files([], [Path("/nowhere")])
    assert asked[-1] == (446, 0, 1 << 3)
