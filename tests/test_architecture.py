"""docs/architecture.md: its recipes work, its files exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oncofed.algorithms import algorithm_names
from synthetic import make_volume

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?(?: after="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_MAIN = "import sys; from oncofed.cli.main import main; sys.argv[0] = 'oncofed'; main()"


@dataclass(frozen=True)
class Block:
    """A block of code on the page."""

    language: str
    file: str
    after: str
    text: str


def recipes() -> dict[str, list[Block]]:
    """Return the blocks of each recipe by its heading."""
    sections = PAGE.partition("## To add something")[2].split("\n### ")[1:]
    return {
        section.partition("\n")[0]: [Block(*(part or "" for part in found)) for found in _BLOCK.findall(section)]
        for section in sections
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of code and jobs with all recipes applied."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "custom", folder / "custom", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    for number in range(4):
        image, label = make_volume(number)
        patient = folder / "livers" / f"P{number}"
        patient.mkdir(parents=True)
        nib.save(nib.Nifti1Image(image, np.eye(4)), patient / "scan.nii.gz")
        nib.save(nib.Nifti1Image((label > 0).astype(np.uint8), np.eye(4)), patient / "truth.nii.gz")
    for block in (block for blocks in recipes().values() for block in blocks if block.file):
        path = folder / block.file
        if not block.after:
            assert not path.exists(), f"{block.file} is there already: say after which line the block goes"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            continue
        before, line, rest = path.read_text(encoding="utf-8").partition(f"{block.after}\n")
        assert line, f"{block.file} has no line {block.after!r}"
        path.write_text(f"{before}{line}{block.text}{rest}", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_recipes_work(checkout: Path) -> None:
    consoles = [block.text for blocks in recipes().values() for block in blocks if block.language == "console"]
    assert len(recipes()) == 6
    assert len(consoles) >= 4
    environment = {**os.environ, "PYTHONPATH": str(checkout / "custom")}
    for console in consoles:
        command, *expected = console.splitlines()
        program, *arguments = shlex.split(command.removeprefix("$ "))
        assert program == "oncofed"
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, *arguments],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert [line for line in expected if line not in done.stdout + done.stderr] == []


def test_files_that_the_page_names_are_there() -> None:
    text = _BLOCK.sub("", PAGE)
    named = set(re.findall(r"`([a-z_]+/[a-z_/]*(?:[a-z_]+\.py)?)`", text))
    assert len(named) > 25
    places = ROOT / "custom" / "oncofed", ROOT
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_readme_lists_every_algorithm() -> None:
    table = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert [name for name in algorithm_names() if f"`{name}`" not in table] == []
