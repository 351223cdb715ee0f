"""The fork server on a machine with a stub driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oncofed.flare.runtime.forkserver import ForkServer, JobCommand
from oncofed.flare.runtime.preload import MODULES
from stub_driver import build_driver

# As nvJPEG does when a program loads it.
_INITIALISES = "import ctypes\nctypes.CDLL('libcuda.so.1').cuInit(0)\n"
_LOADS = "import ctypes\nctypes.CDLL('libcuda.so.1')\n"
_JOB = """
import ctypes, os, sys
from pathlib import Path

count = ctypes.c_int()
before = ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
started = ctypes.CDLL("libcuda.so.1").cuInit(0)
command = Path("/proc/self/cmdline").read_text()
Path(sys.argv[1]).write_text(f"{before} {started} {os.environ['COLOUR']} {'secret' in command} {os.getpid()}")
print("printed")
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a stub driver and of importable modules."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build_driver(tmp_path / "driver")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return tmp_path


def test_preloading_does_not_call_the_driver(folder: Path) -> None:
    codec = folder / "nvidia" / "nvimgcodec"
    codec.mkdir(parents=True)
    (codec / "__init__.py").write_text(_INITIALISES)
    script = (
        f"{_LOADS}from oncofed.flare.runtime import preload; print('said', preload.import_all()); "
        "import nvidia.nvimgcodec; from oncofed.gpus import cuda_is_initialised; print(cuda_is_initialised())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["said ", "True"]
    assert done.stderr.count("cuInit") == 1


def test_the_cuda_check_does_not_load_the_driver(folder: Path) -> None:
    script = (
        "from oncofed.gpus import cuda_is_initialised; from pathlib import Path; "
        "print(cuda_is_initialised(), 'libcuda' in Path('/proc/self/maps').read_text())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@contextmanager
def _fork_server(folder: Path, first: str) -> Iterator[ForkServer]:
    """Start a fork server whose Python first runs ``first``."""
    (folder / "sitecustomize.py").write_text(first)
    (folder / "job.py").write_text(_JOB)
    server = ForkServer(dict(os.environ))
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(("first", "spoilt"), [(_LOADS, False), (_INITIALISES, True)])
def test_a_job_can_use_the_gpu_after_any_import(
    folder: Path, first: str, spoilt: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with _fork_server(folder, first) as server:
        environment = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH")}
        command = JobCommand("job", [str(folder / "out"), "secret"], {**environment, "COLOUR": "blue"})
        fork = server.fork(command)
        assert fork.wait(300) == 3
    before, started, colour, is_told, pid = (folder / "out").read_text().split()
    assert (colour, is_told, int(pid)) == ("blue", "False", fork.pid)
    printed = capfd.readouterr()
    assert "printed" in printed.out
    said = f"CUDA was initialised as {MODULES[0]} was imported" in printed.err
    assert said == spoilt
    # A fork is the first to initialise it: where Python starts again, it is this very process.
    assert f"DRIVER {fork.pid} cuInit" in printed.err
    assert (before, started) == ("0" if spoilt else "3", "0")
