"""Checks, most valuable first.

Each is a module with a function ``check``.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oncofed.errors import SpecError

if TYPE_CHECKING:
    from gpu_checks.context import Context


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: of its module in this package.
        seconds: that it may take on a GPU; then it is killed.
    """

    name: str
    seconds: float

    @property
    def title(self) -> str:
        """First sentence of the module's docstring."""
        text = (Path(__file__).parent / f"{self.name}.py").read_text(encoding="utf-8")
        return " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split()).rstrip(".")

    def load(self) -> Callable[[Context], None]:
        """Return its function."""
        function: Callable[[Context], None] = importlib.import_module(f"gpu_checks.{self.name}").check
        return function


CHECKS = (
    Check("facts", 45),
    Check("training", 90),
    Check("restart", 100),
    Check("confined", 80),
    Check("step", 130),
    Check("scoring", 100),
    Check("rounds", 110),
    Check("memory", 40),
    Check("sharing", 50),
    Check("determinism", 70),
    Check("slides", 45),
    Check("strategies", 30),
    Check("bags", 25),
    Check("compiling", 150),
    Check("groups", 40),
)


def chosen(names: str) -> Sequence[Check]:
    """Return checks by comma-separated names, in order; without names all.

    Raises:
        SpecError: one is unknown.
    """
    wanted = [name for name in names.split(",") if name]
    known = {check.name for check in CHECKS}
    for name in wanted:
        if name not in known:
            raise SpecError(f"no check {name!r}; expected some of: {', '.join(check.name for check in CHECKS)}")
    return [check for check in CHECKS if not wanted or check.name in wanted]
