"""``import oncofed`` offers what notebooks need, and loads nothing before it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import oncofed

_NAMES = [
    "JobSpec",
    "RegisterOptions",
    "Run",
    "Trainer",
    "check_dataset",
    "load_model",
    "predict",
    "read_job",
    "register",
    "register_algorithm",
    "register_loss",
    "register_network",
    "register_task",
    "register_transform",
    "usable_cases",
]


def test_these_are_its_names() -> None:
    assert oncofed.__all__ == _NAMES
    assert set(dir(oncofed)) == {*_NAMES, "__version__"}
    stub = ast.parse((Path(oncofed.__file__).parent / "__init__.pyi").read_text())
    imported = {name.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert imported == oncofed._HOMES  # type: ignore[attr-defined]
    assert (Path(oncofed.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", _NAMES)
def test_each_is_described_and_typed(name: str) -> None:
    found = getattr(oncofed, name)
    assert found.__doc__
    if inspect.isfunction(found):
        assert found.__annotations__["return"]


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="offers JobSpec"):
        oncofed.trainer  # type: ignore[attr-defined]  # noqa: B018


def test_importing_it_loads_no_library() -> None:
    program = (
        "import sys, oncofed; print([name for name in ('torch', 'numpy', 'monai', 'nvflare') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
