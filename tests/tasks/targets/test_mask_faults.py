"""What is wrong with a mask beside targets is told, and costs the case no other target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from discs import JOB, job, make_discs
from oncofed.data.cases import usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.label_mapping import match
from oncofed.data.manifest import read_manifest
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return job(tmp_path)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{partial: true}", r"job\.yaml:10: unknown setting task\.partial: .* disc, .*\{kind: mask, partial: …\}"),
        ("{colour: 3}", r"job\.yaml:10: unknown setting task\.colour; allowed here: type, classes, targets"),
    ],
)
def test_a_wrong_setting_beside_targets_is_named(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        job(tmp_path, "training:", f"task: {task}\ntraining:")


_OF_MASK = r"allowed here: name, kind, weight, classes, (\w+, )*partial"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("unit: px", "colour: 3, unit: px"),
            r":7: unknown setting targets\.1\.colour; allowed here: name, kind, weight, ",
        ),
        (("unit: px, ", "units: px, "), r"targets\.1\.units; allowed here: .*unit, range"),
        (("weight: 2}", "colour: 3}"), r"job\.yaml:6: unknown setting targets\.0\.colour; " + _OF_MASK),
        (("classes: [", "colour: 3, classes: ["), r"job\.yaml:8: unknown setting targets\.2\.colour; .*, classes"),
    ],
)
def test_a_wrong_setting_of_a_target_says_what_is_allowed(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        job(tmp_path, *change)


def test_so_does_one_of_a_mask_that_is_alone(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    others = JOB[JOB.index("  - {name: radius") : JOB.index("model:")]
    with pytest.raises(SpecError, match=r"job\.yaml:6: unknown setting targets\.0\.colour; " + _OF_MASK):
        job(tmp_path / "alone", others + "model:", "model:", "weight: 2}", "colour: 3}")


def test_a_mistake_in_a_list_of_targets_does_not_print_them(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"job\.yaml:5: targets: two targets are called disc; give each"):
        job(tmp_path, "name: radius", "name: disc")


def test_the_advice_on_a_lack_is_one_that_a_job_of_targets_can_follow(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_discs(tmp_path / "set")
    values = json.loads((folder / "dataset.json").read_text())
    for entry in values["training"]:
        entry["looked_for"] = ["rim"]
    (folder / "dataset.json").write_text(json.dumps(values))
    plan = spec.plan()
    with pytest.raises(DataError, match="may lack classes: partial: true of the target of kind mask"):
        usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here")
    supervision = job(tmp_path, "weight: 2}", "weight: 2, partial: true}").plan().supervision()
    (folder / "dataset.json").write_text(json.dumps({**values, "labels": {"1": "1", "2": "2"}}))
    problems = match(read_manifest(folder), supervision).problems
    assert "(partial: true of the target of kind mask)" in problems[0]


def test_a_mask_that_cannot_be_used_costs_the_case_no_target(spec: JobSpec, tmp_path: Path) -> None:
    folder = make_discs(tmp_path / "set")
    values = json.loads((folder / "dataset.json").read_text())
    values["training"][1]["looked_for"] = ["lung"]
    del values["training"][3]["targets"]
    (folder / "dataset.json").write_text(json.dumps(values))
    for number in (2, 3):
        Image.new("L", (32, 32)).save(folder / f"labelsTr/{number:02}.png")
    plan = spec.plan()
    found = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here")
    cases = {case.name: case for case in found.cases}
    assert [cases[name].label for name in ("01", "02")] == [0, 0]
    assert cases["01"].targets["radius"] > (0,)
    assert [problem.case for problem in found.set_aside] == ["03"], "it has nothing else"
    report = check_dataset(folder, plan.data, plan.supervision(), plan.seed)
    said = {warning.case: warning.what for warning in report.warnings if warning.kind == "mask left out"}
    assert said.keys() == {"01", "02"}
    assert "looked_for names lung" in said["01"]
    assert said["02"] == "its label is empty: no voxel of any class. Its targets are used without the mask"
