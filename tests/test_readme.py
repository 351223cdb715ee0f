"""What the README promises: its commands exist, its job is valid, and continuous integration runs the same commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from oncofed.cli.main import app
from oncofed.job.flare import export_job
from oncofed.job.spec import parse_job

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in _blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.split("/")[-1].split(" ")[0] == program]


def test_continuous_integration_runs_the_two_commands() -> None:
    ci = (_ROOT / ".ci" / "run").read_text().splitlines()
    assert _blocks("bash")[0].split("\n")[:2] == ["make demo", "make test"]
    assert {"make demo", "make test", "make check"} <= set(ci)


@pytest.mark.parametrize("words", _commands("oncofed"), ids=" ".join)
def test_every_command_is_one_that_oncofed_has(words: list[str]) -> None:
    command, arguments = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[1], list(arguments))  # raises on an unknown option or a wrong value


def test_the_job_is_valid_and_exports(tmp_path: Path) -> None:
    [block] = _blocks("yaml")
    file = tmp_path / "my_lesions.yaml"
    file.write_text(block)
    export_job(parse_job(file), tmp_path / "exported")


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", _README):
        assert link.startswith("http") or (_ROOT / link).exists(), link
