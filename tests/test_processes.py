from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from commands import wait_for
from oncofed.processes import process_environment, short_path, stop_processes

# A parent that ends at once and leaves a child which does not heed SIGTERM.
_ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"],
    start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
child.stdout.readline()
print(child.pid, flush=True)
"""


def test_processes_whose_parents_died_are_stopped_too_and_no_others(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        environment = process_environment(tmp_path / "run", 2)
        done = subprocess.run([sys.executable, "-c", _ORPHAN], env=environment, capture_output=True, check=True)
        orphan = psutil.Process(int(done.stdout))
        assert orphan.is_running()
        stop_processes(tmp_path / "run")
        wait_for(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE, "the orphan ended", 30)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_sockets_fit_into_the_temporary_folder_of_a_deep_workspace(tmp_path: Path) -> None:
    deep = tmp_path / ("patient-studies-" * 6) / "tmp"
    with short_path(deep) as temporary, socket.socket(socket.AF_UNIX) as listener:
        folder = temporary / "pymp-12345678"
        folder.mkdir()
        listener.bind(str(folder / "listener-12345678"))
        assert list(deep.rglob("listener-*"))
    assert not os.path.lexists(temporary)
    with short_path(Path("/tmp/x-oncofed")) as temporary:
        assert temporary == Path("/tmp/x-oncofed")
    temporary.rmdir()
