"""What README and docs show is valid: commands, jobs, code, links."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
import typer

from oncofed.algorithms import algorithm_names
from oncofed.cli.main import app
from oncofed.job.flare import export_job
from oncofed.job.spec import parse_job, read_job
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.plugins import NETWORKS
from synthetic import make_site

_ROOT = Path(__file__).parents[1]
_README = _ROOT / "README.md"
_DOCS = _ROOT / "docs"
_PAGES = [_README, *sorted(_DOCS.glob("*.md"))]
_LONGEST_README = 150


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[list[str]]:
    lines = [
        line.split("#")[0].strip() for page in _PAGES for block in _blocks(page, "bash") for line in block.splitlines()
    ]
    found = [shlex.split(line) for line in lines if line.split("/")[-1].split(" ")[0] == program]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


def _heading_ids(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings]
    return {*plain, *re.findall(r'<a id="([^"]+)">', text)}


def test_continuous_integration_runs_the_two_commands() -> None:
    ci = (_ROOT / ".ci" / "run").read_text().splitlines()
    assert _blocks(_README, "bash")[0].split("\n")[:2] == ["make demo", "make test"]
    assert {"make demo", "make test", "make check"} <= set(ci)


@pytest.mark.parametrize("words", _commands("oncofed"), ids=" ".join)
def test_every_command_is_one_that_oncofed_has(words: list[str]) -> None:
    command, arguments = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[1], list(arguments))  # raises on an unknown option or a wrong value


def test_the_job_is_valid_and_exports(tmp_path: Path) -> None:
    block, _ = _blocks(_DOCS / "jobs.md", "yaml")
    file = tmp_path / "my_lesions.yaml"
    file.write_text(block)
    export_job(parse_job(file), tmp_path / "exported")


def test_the_targets_are_those_of_a_valid_job(tmp_path: Path) -> None:
    _, targets = _blocks(_DOCS / "jobs.md", "yaml")
    file = tmp_path / "outcomes.yaml"
    head = "schema: 1\nname: outcomes\ntitle: Outcomes\ndata: {dataset: chest, modality: xray, patch: [64, 64]}\n"
    file.write_text(f"{head}model: {{network: densenet121}}\n{targets}")
    assert [target.kind for target in parse_job(file).task.named_targets] == ["labels", "grade", "value", "survival"]


def test_the_script_trains_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = _blocks(_DOCS / "python.md", "python")
    monkeypatch.chdir(tmp_path)
    make_site(tmp_path / "workspace/datasets/hippocampus")
    small = {"data": {"patch": [16, 16, 16]}, "model": {"channels": [4, 8]}, "training": {"steps_per_round": 2}}
    job = read_job("hippocampus_segmentation").changed(small)
    with patch("oncofed.job.spec.read_job", return_value=job):
        exec(compile(script, "python.md", "exec"), {})
    assert capsys.readouterr().out.startswith("Dice 0.")
    assert (tmp_path / "workspace/datasets/checkpoint.safetensors").is_file()


def test_the_custom_network_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = _blocks(_DOCS / "networks.md", "python")
    monkeypatch.setattr(NETWORKS, "_known", dict(NETWORKS._known))
    module = ModuleType("my_networks")
    monkeypatch.setitem(sys.modules, "my_networks", module)
    exec(compile(own, "networks.md", "exec"), module.__dict__)
    spec = ModelSpec(network="two_convolutions", arguments={"width": 32})
    assert build_network(NetworkRequest(spec, 1, 3, 3, (8, 8, 8)), 1)(torch.zeros(1, 1, 8, 8, 8)).shape == (
        1,
        3,
        8,
        8,
        8,
    )
    assert len(own.splitlines()) <= 15


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md" and target in _PAGES:
            assert anchor in _heading_ids(target), link


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = _README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= _LONGEST_README
    for page in _DOCS.glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


def test_its_numbers_are_those_of_the_tree() -> None:
    text = _README.read_text(encoding="utf-8")
    assert f"[{len(list((_ROOT / 'jobs').glob('*/job.yaml')))} jobs with cards]" in text
    assert f"choose among {len(algorithm_names())} algorithms" in text
