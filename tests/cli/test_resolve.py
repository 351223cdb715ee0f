"""From a refused dataset to one that trains.

With the commands that a site's admin types.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from commands import Outcome
from oncofed.audit import AuditLog
from oncofed.cli.findings import show_findings
from oncofed.data.case_checks import Problem
from oncofed.data.contract import Report
from oncofed.data.quality import Finding
from synthetic import make_site

Run = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 30 cases, many of them unusable.

    8 are constant, 5 copies of others, one without a label, and there are other files.
    """
    monkeypatch.setenv("ONCOFED_WORKSPACE", str(tmp_path / "workspace"))
    site = make_site(tmp_path / "in", 30)
    for number in range(8):
        nib.save(
            nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.eye(4)), site / "imagesTr" / f"case_{number}.nii.gz"
        )
    for number in range(10, 15):
        for sub in ("imagesTr", "labelsTr"):
            shutil.copy(site / sub / f"case_{number + 10}.nii.gz", site / sub / f"case_{number}.nii.gz")
    values = json.loads((site / "dataset.json").read_text())
    del values["training"][15]["label"]
    (site / "dataset.json").write_text(json.dumps(values))
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", ".hidden"):
        (site / name).write_text("x")
    return site


def test_register_accounts_for_each_file_and_ends_with_the_labelled_count(run: Run, folder: Path) -> None:
    shown = run("data", "register", folder, "--dataset", "balls")
    assert "set aside 8 cases: its image is constant (every voxel is 0): case_0 (imagesTr/case_0.nii.gz)" in shown.text
    assert "files: 22 images, 21 labels, 1 table, 22 left out; each by name in" in shown.text
    assert "left out 4: file that is no image (.txt): a.txt, b.txt, c.txt and 1 more" in shown.text
    assert "left out 1: hidden file (its name begins with a dot): .hidden" in shown.text
    assert "to do: rename it if it is of use" in shown.text
    assert "left out 1: mask that dataset.json does not name: labelsTr/case_15.nii.gz" in shown.text
    assert shown.output.splitlines()[-1] == (
        "labels: 21 of 22 patients (95 %); 8 more cases set aside; "
        "1 image without: oncofed data check JOB balls says why"
    )
    printed = json.loads(run("data", "register", folder, "--dataset", "balls", "--json").output)
    assert printed["files"] == {"image": 22, "label": 21, "table": 1, "left out": 22}
    assert sum(printed["left_out"].values()) + sum(bad["files"] for bad in printed["quarantine"]) == 22
    assert printed["labelled"] == "labels: 21 of 22 patients (95 %)"


def test_check_names_the_command_under_each_kind_and_it_works(run: Run, job: Path, folder: Path) -> None:
    run("data", "register", folder, "--dataset", "balls", "--labels", "shell,core")
    checked = run("data", "check", job, "balls")
    assert checked.status == 3
    constant = "8 cases: its image is constant (every voxel is 0): case_0, case_1, case_2 and 5 more"
    assert f"set aside {constant}" in checked.text
    assert f"to go on: oncofed data resolve balls --constant leave-out --job {job}" in checked.text
    assert "found: duplicate image (checksum) 5 cases" in checked.text
    assert "case_20: its image is the same file as that of another patient's case_10" in checked.text
    assert "… and 2 more" in checked.text
    assert "to go on: oncofed data resolve balls --copies keep-one (or same-patient, keep-all)" in checked.text
    assert "without a label: 1 case case_15: dataset.json names no label for it" in checked.text
    values = json.loads(run("data", "check", job, "balls", "--json").output)
    assert len(values["findings"]) == 5
    assert len(values["set_aside"]) == 8
    tried = run("data", "resolve", "balls", "--constant", "leave-out", "--job", job, "--dry-run")
    assert "would be decided constant leave-out: 8 cases, 8 left out" in tried.text
    for command in values["commands"].values():
        assert run(*command.split()[1:]).status == 0
    checked = run("data", "check", job, "balls")
    assert checked.status == 0, checked.text
    assert "decided copies keep-one: 10 cases, 5 left out; " in checked.text
    shown = run("data", "register", folder, "--dataset", "balls", "--labels", "shell,core")
    assert "decided constant leave-out: 8 cases, 8 left out; " in shown.text
    assert shown.output.splitlines()[-1].startswith("labels: 16 of 17 patients (94 %); 1 image without")
    listed = json.loads(run("data", "resolve", "balls", "--json").output)
    assert listed["open"] == {}
    assert len(listed["decisions"]) == 2
    assert (
        "taken back copies keep-one: 10 cases" in run("data", "resolve", "balls", "--copies", "keep-one", "--undo").text
    )
    assert "open: duplicate image (checksum), 5" in run("data", "resolve", "balls").text


def test_what_is_of_a_dataset_as_a_whole_is_counted_as_no_case(capsys: pytest.CaptureFixture[str]) -> None:
    lacks = [f"{name}: no patient has it: nothing is learned of it here" for name in ("radius", "striped")]
    show_findings(Report(warnings=[Finding("target", None, what, severe=False) for what in lacks]), "job", "balls")
    assert capsys.readouterr().out.splitlines() == [f"warning: target {lacks[0]}", f"  {lacks[1]}"]


def test_a_command_is_printed_once_for_all_that_it_settles(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = ["is cut off", "its image is constant (every voxel is 0)", "holds NaN", "is of another encoder"]
    report = Report(set_aside=[Problem(f"c{number}", reason) for number, reason in enumerate(reasons)])
    show_findings(report, "job", "balls")
    printed = capsys.readouterr().out.splitlines()
    cure = [number for number, line in enumerate(printed) if "--set-aside leave-out --job job" in line]
    assert [printed[number - 3 : number] for number in cure] == [
        ["set aside c0: is cut off", "set aside c2: holds NaN", "set aside c3: is of another encoder"]
    ]
    assert sum("--constant leave-out --job job" in line for line in printed) == 1


def test_the_suggested_commands_work(
    run: Run, job: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONCOFED_WORKSPACE")
    workspace, out = tmp_path / "my work", tmp_path / "Leber 2024"
    named, placed = ["--workspace", str(workspace)], ["--out", out]
    for where, dataset, more in ((placed, str(out), []), (named, "balls", named), ([*placed, *named], str(out), named)):
        shown = run("data", "register", folder, "--dataset", "balls", "--labels", "shell,core", *where)
        [line] = [line for line in shown.output.splitlines() if line.startswith("Next: ")]
        typed = shlex.split(line.removeprefix("Next:"))
        assert typed == ["oncofed", "data", "check", "JOB", dataset, *more]
        checked = run(*typed[1:3], job, *typed[4:])
        lines = [line for line in checked.output.splitlines() if line.startswith("  to go on: ")]
        assert len(lines) == 2
        for line in lines:
            decided = run(*shlex.split(line.partition("   (or")[0].removeprefix("  to go on: "))[1:], "--dry-run")
            assert decided.status == 0, decided.text
            [open_] = [line for line in decided.output.splitlines() if line.startswith("still open: ")] or [""]
            assert not open_ or shlex.split(open_)[-len(more) :] == more or not more
        listed = run("data", "resolve", *typed[4:])
        assert shlex.join(["oncofed", "data", "resolve", dataset, "--copies", "keep-one", *more]) in listed.output


def test_the_audit_log_records_it_and_a_missing_log_is_reported(run: Run, folder: Path, tmp_path: Path) -> None:
    run("data", "register", folder, "--dataset", "balls")
    without = run("data", "resolve", "balls", "--constant", "leave-out", "--why", "blank")
    assert "No audit log has it: this folder is no site's kit. Name the kit with --site FOLDER." in without.text
    assert run("data", "resolve", "balls", "--copies", "keep-one", "--site", tmp_path / "no").status == 2
    (tmp_path / "kit" / "startup").mkdir(parents=True)
    kept = run(
        "data", "resolve", "balls", "--copies", "keep-one", "--why", "one scan twice", "--site", tmp_path / "kit"
    )
    assert f"audit log: {AuditLog(tmp_path / 'kit').path}" in kept.text
    [entry] = AuditLog(tmp_path / "kit").entries()
    assert (entry["finding"], entry["action"], entry["reason"]) == ("copies", "keep-one", "one scan twice")
    assert run("data", "resolve", "balls", "--copies", "drop").status == 2


def test_a_run_prints_counts_and_three_examples(run: Run, job: Path, folder: Path, tmp_path: Path) -> None:
    run("data", "register", folder, "--dataset", "balls", "--labels", "shell,core")
    sites = ["--site", "east=balls", "--site", "west=balls", "--out", tmp_path / "run"]
    refused = run("job", "run", job, *sites)
    assert refused.status == 3
    assert "8 cases: its image is constant (every voxel is 0): case_0, case_1, case_2 and 5 more" in refused.text
    assert "oncofed data check names the command that goes on without them." in refused.text
