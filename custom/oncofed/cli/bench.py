"""``oncofed bench``, which needs a checkout of the source code.

The installed package does not contain the harness.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import typer

import oncofed
from oncofed.errors import SpecError

_FOLDER = Path("benchmarks") / "harness"


def add_to(app: typer.Typer) -> None:
    """Add the group of commands, or a pointer to it."""
    folder = Path(oncofed.__file__).parents[2] / _FOLDER
    if (folder / "commands.py").is_file():
        app.add_typer(_commands(folder), name="bench")
    else:
        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command("bench", context_settings=anything)(_absent)


def _commands(folder: Path) -> typer.Typer:
    """Import the harness's commands from outside the search path."""
    if "harness" not in sys.modules:
        spec = importlib.util.spec_from_file_location("harness", folder / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["harness"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["harness"])
    commands = importlib.import_module("harness.commands").app
    assert isinstance(commands, typer.Typer)
    return commands


def _absent() -> None:
    """Measure speed; needs the source code."""
    raise SpecError(
        "benchmarks come with oncofed's source code, not with the installed package. Run this in a clone of the "
        "repository, or in an unpacked benchmark bundle (make bench-bundle)"
    )
