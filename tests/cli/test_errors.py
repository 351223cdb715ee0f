"""Errors: one clear message, exit status, no stack trace."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from commands import Outcome
from oncofed.cli import main as entry
from oncofed.cli.common import ended_by_signals
from oncofed.errors import SpecError
from oncofed.report.result import read_result


def _sites(two_sites: dict[str, Path]) -> list[str]:
    return [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]


def _remove(label: Path) -> None:
    label.unlink()


def _reshape(label: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), label)


def _truncate(label: Path) -> None:
    label.write_bytes(label.read_bytes()[:200])


def _truncate_inside(label: Path) -> None:
    label.write_bytes(gzip.compress(gzip.decompress(label.read_bytes())[:400]))


def _empty_file(label: Path) -> None:
    label.write_bytes(b"")


def _scribble(label: Path) -> None:
    label.write_bytes(b"not an image at all" * 50)


def _other_values(label: Path) -> None:
    volume = np.zeros((20, 20, 20), np.uint8)
    volume[5:9] = 7
    nib.save(nib.Nifti1Image(volume, np.eye(4)), label)


def _empty_label(label: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.eye(4)), label)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove, "its label file labelsTr/case_2.nii.gz is missing"),
        (_reshape, r"its label has shape \(5, 5, 5\), expected the image's \(20, 20, 20\)"),
        (_truncate, "its label file labelsTr/case_2.nii.gz cannot be read as NIfTI"),
        (_truncate_inside, "its label file labelsTr/case_2.nii.gz cannot be read as NIfTI"),
        (_empty_file, r"its label file labelsTr/case_2.nii.gz is empty \(0 bytes\)"),
        (_scribble, "its label file labelsTr/case_2.nii.gz cannot be read as NIfTI"),
        (_other_values, r"its label holds the values 7, expected only 0, 1, 2"),
        (_empty_label, "its label is empty"),
    ],
)
def test_an_unusable_case_is_named_with_advice(
    run: Callable[..., Outcome],
    job: Path,
    two_sites: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(two_sites["west"] / "labelsTr" / "case_2.nii.gz")
    out = tmp_path / "run"
    outcome = run("job", "run", job, *_sites(two_sites), "--out", out)
    assert outcome.status == 3
    assert re.search(
        r"error: west: 1 of 5 cases cannot be used, more than the share of 0.05 [^:]*: case_2: " + message, outcome.text
    ), outcome.text
    assert outcome.text.endswith("Repair them, or let more be set aside: --max-bad-share 1")
    assert not out.exists(), "a run that never began leaves nothing"
    assert str(two_sites["west"]) not in outcome.text


@pytest.mark.slow
@pytest.mark.federation
def test_an_option_lets_a_run_skip_bad_cases(
    run: Callable[..., Outcome], job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    _truncate(two_sites["west"] / "imagesTr" / "case_2.nii.gz")
    out = tmp_path / "run"
    arguments = ["--out", out, "--max-bad-share", "0.2", "--backend", "simulate", "--no-baselines"]
    outcome = run("job", "run", job, *_sites(two_sites), *arguments)
    assert outcome.status == 0, outcome.text
    assert "set aside west: case_2: its image file imagesTr/case_2.nii.gz cannot be read" in outcome.text
    result = read_result(out)
    assert {site: values.skipped_cases for site, values in result.sites.items()} == {"east": 0, "west": 1}
    assert result.backend == "simulate"
    assert result.mean.federated is not None
    assert result.mean.alone is None


def test_a_registered_dataset_takes_precedence_over_a_folder_of_its_name(
    run: Callable[..., Outcome],
    job: Path,
    two_sites: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refused run leaves nothing, so it can be repeated."""
    new = tmp_path / "new"
    new.mkdir()
    for part in ("imagesTr", "labelsTr"):
        (two_sites["east"] / part).rename(new / part)
    monkeypatch.chdir(tmp_path)
    out, workspace = tmp_path / "out", ("--workspace", tmp_path / "ws")
    registered = run("data", "register", "new", "--dataset", "new", "--labels", "1=liver,2=spleen", *workspace)
    assert registered.status == 0, registered.text
    for _ in range(2):
        outcome = run(
            "job", "run", job, "--site", "a=new", "--site", f"b={two_sites['west']}", "--out", out, *workspace
        )
        assert outcome.status == 3
        assert "its label 'liver' is none of the job's" in outcome.text
        assert not out.exists()


def test_an_empty_site_is_named(
    run: Callable[..., Outcome], job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    (two_sites["west"] / "dataset.json").write_text(json.dumps({"training": []}))
    outcome = run("job", "run", job, *_sites(two_sites), "--out", tmp_path / "run")
    assert outcome.status == 3
    assert "west: no usable training case (found 0 training, 0 validation, 0 test" in outcome.text
    assert "leave the site out" in outcome.text


def test_a_folder_of_another_layout_is_explained(run: Callable[..., Outcome], job: Path, tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    missing = run("job", "run", job, "--site", f"a={tmp_path / 'nowhere'}", "--out", tmp_path / "run")
    assert missing.status == 3
    assert "no such folder. Expected a folder with dataset.json, imagesTr and labelsTr" in missing.text
    other = run("job", "run", job, "--site", f"a={tmp_path / 'pacs'}", "--out", tmp_path / "run2")
    assert other.status == 3
    assert "no dataset.json. Expected the Decathlon layout" in other.text


def test_an_unknown_job_is_answered_with_the_known_ones(run: Callable[..., Outcome]) -> None:
    for command in (["show"], ["check"], ["export", "--out", "x"], ["run", "--site", "a=b"]):
        outcome = run("job", command[0], "hipocampus", *command[1:])
        assert outcome.status == 2
        assert "unknown job 'hipocampus'" in outcome.text
        assert "Known jobs: brain_survival, brain_tissue_segmentation, brain_tumour_regions, " in outcome.text


def test_a_taken_port_is_named(
    run: Callable[..., Outcome], job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = run("job", "run", job, *_sites(two_sites), "--port", port, "--out", tmp_path / "run")
    assert outcome.status == 1
    assert f"port {port} is taken by another program. Give another with --port" in outcome.text


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("west", "expected NAME=FOLDER"),
        ("we st=/data", "expected NAME=FOLDER"),
        ("../west=/data", "expected NAME=FOLDER"),
        ("server=/data", "this name is taken"),
    ],
)
def test_a_site_that_cannot_be_read_is_explained(
    run: Callable[..., Outcome], job: Path, site: str, message: str
) -> None:
    outcome = run("job", "run", job, "--site", site)
    assert outcome.status == 2
    assert message in outcome.text


def test_fewer_sites_than_the_job_needs_are_refused(
    run: Callable[..., Outcome], job: Path, two_sites: dict[str, Path]
) -> None:
    job.write_text(job.read_text().replace("number: 2", "number: 2, quorum: 3"))
    outcome = run("job", "run", job, *_sites(two_sites))
    assert outcome.status == 2
    assert "the job needs 3 sites (rounds.quorum), found 2. Name more sites, or lower it." in outcome.text
    assert "the job needs 3 sites (rounds.quorum), found 2." in run("job", "check", job, "--sites", "2").text
    job.write_text(job.read_text().replace(", quorum: 3", "") + "strategy: {name: fedbuff, buffer: 3}\n")
    assert "strategy.buffer is 3, found 2 sites that train" in run("job", "run", job, *_sites(two_sites)).text
    job.write_text(job.read_text().replace("{name: fedbuff, buffer: 3}", "krum"))
    assert "sites (strategy krum), found 2. Name more" in run("job", "check", job, "--sites", "2").text


def test_a_folder_that_holds_something_is_left_alone(
    run: Callable[..., Outcome], job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    outcome = run("job", "run", job, *_sites(two_sites), "--out", tmp_path)
    assert outcome.status == 2
    assert "is not empty" in outcome.text
    assert (tmp_path / "thesis.txt").read_text() == "chapter 1"


def test_a_workspace_that_cannot_be_written_to_is_named(
    run: Callable[..., Outcome], job: Path, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    outcome = run("job", "run", job, *_sites(two_sites), "--workspace", tmp_path / "taken")
    assert outcome.status == 1
    assert f"error: {tmp_path / 'taken'}" in outcome.text
    assert "name another with --workspace or --out" in outcome.text


def test_a_mistake_in_a_job_is_reported_with_its_line(run: Callable[..., Outcome], job: Path) -> None:
    job.write_text(job.read_text().replace("learning_rate", "learning_rat"))
    outcome = run("job", "check", job)
    assert outcome.status == 2
    assert f"{job}:7: unknown setting training.learning_rat; allowed here: steps_per_round" in outcome.text


def test_the_demo_asks_for_the_folder_that_it_needs(run: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run("demo", "--data", "hippocampus", "--workspace", tmp_path)
    assert outcome.status == 2
    assert "--data hippocampus needs --data-root DIR" in outcome.text
    outcome = run("demo", "--data", "hippocampus", "--data-root", tmp_path / "nowhere", "--workspace", tmp_path)
    assert outcome.status == 3
    assert "no such folder" in outcome.text


def _interrupted_by(number: signal.Signals, cleaned_up: list[str]) -> None:
    with ended_by_signals():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleaned_up.append("yes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_as_ctrl_c_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    cleaned_up: list[str] = []
    with pytest.raises(typer.Exit) as ended:
        _interrupted_by(number, cleaned_up)
    assert ended.value.exit_code == 130
    assert cleaned_up == ["yes"]
    assert signal.getsignal(number) is before


@pytest.mark.wild("oq-engine#4027", "a run under nohup that ends with the terminal")
def test_signals_ignored_by_the_parent_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        cleaned_up: list[str] = []
        with pytest.raises(typer.Exit):
            _interrupted_by(signal.SIGTERM, cleaned_up)
        assert cleaned_up == ["yes"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_debug_shows_where_an_error_came_from(run: Callable[..., Outcome]) -> None:
    with pytest.raises(SpecError):
        run("--debug", "job", "show", "hipocampus")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["job"],
        *(["job", c] for c in ("list", "show", "check", "plan", "export", "run", "exposure", "tune", "convert")),
        ["data"],
        *(["data", c] for c in ("register", "check", "profile", "deidentify", "split")),
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(entry.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_jobs_are_listed_shown_checked_and_exported(run: Callable[..., Outcome], tmp_path: Path) -> None:
    names = [row["name"] for row in json.loads(run("job", "list", "--json").output)]
    assert names == [
        "brain_survival",
        "brain_tissue_segmentation",
        "brain_tumour_regions",
        "chest_findings",
        "ct_organ_segmentation",
        "federated_profile",
        "grade_tiles",
        "hippocampus_pretraining",
        "hippocampus_segmentation",
        "hippocampus_survival",
        "lung_nodule_detection",
        "nuclei_segmentation",
        "partial_organs_segmentation",
        "slide_classification",
        "slide_features",
        "slide_regions_segmentation",
        "survival_ct",
        "survival_features",
        "survival_slides",
        "tile_classification",
        "xray_classification",
    ]
    shown = json.loads(run("job", "show", names[0], "--json").output)
    assert shown["training"]["optimizer"] == "adamw"
    checked = json.loads(run("job", "check", names[1], "--json").output)
    assert checked["ok"]
    assert checked["parameters"] > 100_000
    said = run("job", "check", names[0]).text
    assert "target survival (survival): risk of the event by 36 months; judged by concordance" in said
    exported = run("job", "export", names[0], "--out", tmp_path / "job")
    assert "nvflare job submit -j" in exported.text
    assert (tmp_path / "job" / "meta.json").is_file()
