"""Which build of torch ``make`` installs; nothing is installed here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_CPU, _OLDER = (f"https://download.pytorch.org/whl/{build}" for build in ("cpu", "cu126"))

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment in which everything is installed but torch."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    return tmp_path


def _steps(venv: Path, *settings: str) -> list[str]:
    command = ["make", "--no-print-directory", "--dry-run", "demo", f"VENV={venv}", *settings]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "-m pip " in line and ("'torch=" in line or " torch " in line)]


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("index", [_CPU, _OLDER])
def test_a_named_torch_index_is_used_with_and_without_a_gpu(venv: Path, gpus: int, index: str) -> None:
    remove, install = _steps(venv, f"CUDA={gpus}", f"TORCH_INDEX={index}")
    assert "uninstall" in remove
    assert "'torch==2." in install  # "===" would take no build of that index, which are called 2.13.0+cpu and so on
    assert f"--index-url {index} " in install


@pytest.mark.parametrize(("gpus", "wanted"), [(0, "'torch==2."), (1, "'torch===2."), (8, "'torch===2.")])
def test_without_one_a_gpu_decides(venv: Path, gpus: int, wanted: str) -> None:
    (install,) = _steps(venv, f"CUDA={gpus}")
    assert wanted in install
    assert "index-url" not in install


def test_a_named_index_persists_until_replaced(venv: Path) -> None:
    (venv / "torch.installed").write_text(f"{_CPU}\n")
    assert _steps(venv, "CUDA=1") == []
    assert _steps(venv, "CUDA=1", f"TORCH_INDEX={_CPU}") == []
    _, install = _steps(venv, "CUDA=1", f"TORCH_INDEX={_OLDER}")
    assert f"--index-url {_OLDER} " in install
    subprocess.run(["touch", "--date=2001-01-01", venv / "torch.installed"], check=True)  # the constraints are newer
    _, install = _steps(venv, "CUDA=1")
    assert f"'torch==2.13.0' --index-url {_CPU} " in install
