"""The page on targets names each setting with its default, and its examples are valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import yaml

from oncofed.data.targets import DatasetTarget, FollowUp
from oncofed.job.spec import JobSpec, parse_job
from oncofed.tasks.targets import TARGET_KINDS, MaskTargetsSpec, TargetSettings, TargetsSpec
from oncofed.tasks.targets.base import head_of

_FOLDER = Path(__file__).parents[3] / "custom" / "oncofed" / "tasks" / "targets"
_PAGE = (_FOLDER / "README.md").read_text(encoding="utf-8")
_KINDS = ("class", "labels", "grade", "value", "survival")


def _job(folder: Path, number: int) -> JobSpec:
    """Return one of the page's jobs."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)
    file = folder / "job.yaml"
    file.write_text(blocks[number], encoding="utf-8")
    return parse_job(file)


def _targets(folder: Path) -> dict[str, TargetSettings]:
    """Return the targets of the page's job, by kind."""
    job = _job(folder, 0)
    assert [column.name for column in job.data.covariates] == ["age", "stage"]
    assert isinstance(job.task, TargetsSpec)
    return {target.kind: target for target in job.task.targets}


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of a section's first table."""
    section = _PAGE.partition(f"\n## {heading}\n")[2]
    lines = section.partition("|---")[2].partition("\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_job_has_a_target_of_each_kind(tmp_path: Path) -> None:
    assert tuple(_targets(tmp_path)) == _KINDS


def test_a_mask_may_stand_beside_others(tmp_path: Path) -> None:
    job = _job(tmp_path, 1)
    assert isinstance(job.task, MaskTargetsSpec)
    assert [target.kind for target in job.task.targets] == ["mask", "survival"]
    assert job.plan().build_task().figure_names == ["liver", "liver.liver", "liver.tumour", "survival"]


def test_each_setting_has_its_default() -> None:
    told = {(kind.strip("`"), name.strip("`")): default for kind, name, default, _ in _rows("Settings")}
    fields = {
        (kind, name): field
        for kind in _KINDS
        for name, field in TARGET_KINDS.find(kind).Settings.model_fields.items()
        if name not in TargetSettings.model_fields
    }
    assert set(told) == set(fields)
    for setting, field in fields.items():
        default = None if field.is_required() else field.default
        assert (None if told[setting] == "required" else yaml.safe_load(told[setting])) == default, setting


def test_figures_are_those_of_each_kind(tmp_path: Path) -> None:
    rows = {row[0].strip("`"): row for row in _rows("Outputs and figures")}
    assert tuple(rows) == _KINDS
    for kind, target in _targets(tmp_path).items():
        head, (*_, first, further) = head_of(target), rows[kind]
        assert first.startswith(f"`{head.primary.name}`")
        if kind != "survival":
            names = {metric.name for metric in head.declared_metrics} - {"auroc_from_2"}
            assert names == set(re.findall(r"`(\w+)`", further)) - {"gaussian"}


def test_what_datasets_state_is_what_the_job_reads(tmp_path: Path) -> None:
    targets = _targets(tmp_path)
    expected = {
        "class": (1.0,),
        "labels": (1.0, 0.0),
        "grade": (1.0,),
        "value": (35.0,),
        "survival": (412 / 30.4375, 1),
    }
    read = []
    for kind, declared, states in _rows("What a dataset states"):
        name = kind.strip("`")
        declaration = DatasetTarget.model_validate_json(re.findall(r"`(.*?)`", declared)[0])
        for text in re.findall(r"`(.*?)`", states):
            stated = json.loads(text)
            value = FollowUp(**stated) if name == "survival" else stated
            assert np.allclose(targets[name].encode(value, declaration), expected[name])
        read.append(name)
    assert read == list(_KINDS)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", _PAGE):
        assert (_FOLDER / link).exists(), link
