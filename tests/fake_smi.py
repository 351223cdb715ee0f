"""An ``nvidia-smi`` that prints what a test wants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

A100 = "NVIDIA A100-SXM4-40GB"


def row(number: int, name: str = A100, free: int = 40000, busy: str = "3") -> str:
    """Return a GPU's line of the queried table."""
    return f"{number}, GPU-{number}aaa, {name}, 580.82, 40960, {free}, {busy}"


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, table: list[str], listed: str = "", status: int = 0, sleep: float = 0
) -> None:
    """Put it into PATH.

    Args:
        folder: for it.
        monkeypatch: of the test.
        table: its lines for a query.
        listed: what it prints for ``-L``.
        status: with which it exits.
        sleep: seconds before it answers.
    """
    folder.mkdir(exist_ok=True)
    (folder / "table.txt").write_text("".join(line + "\n" for line in table))
    (folder / "list.txt").write_text(listed)
    program = folder / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\nsleep {sleep}\nif [ "$1" = -L ]; then cat {folder}/list.txt; else cat {folder}/table.txt; fi\n'
        f"exit {status}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
