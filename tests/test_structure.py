"""The code's structure: no class grows without bounds."""

from __future__ import annotations

import ast
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_MOST_LINES = 299


def test_no_class_has_300_lines() -> None:
    lines: dict[str, int] = {}
    for folder in ("custom", "benchmarks", "tests"):
        for file in sorted((_ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, ast.ClassDef):
                    lines[f"{node.name} of {file.relative_to(_ROOT)}"] = (node.end_lineno or 0) - node.lineno + 1
    assert len(lines) > 500
    assert {name: n for name, n in lines.items() if n > _MOST_LINES} == {}, "take out what has its own reason to change"
