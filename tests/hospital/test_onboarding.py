"""From a cohort and a folder of images to a checked dataset, again and again."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path

import pytest
import yaml

import made_records as made
from dicoms import make_series, volume
from oncofed.privacy.policy import Policy
from orthancs import Orthanc, why_no_orthanc
from synthetic import make_site

_JOB = """
schema: 1
name: outcome
title: Survival after a scan
data: {dataset: lung, modality: mri, patch: [32, 32, 32], minimum_cases: 2}
targets: [{name: survival, kind: survival, unit: days, horizon: 700}]
model: {network: densenet121}
"""
_CASES = 14


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A hospital's folder with database, images, job and study."""
    patients = made.make_patients(40)
    made.write_crosswalk(patients, tmp_path / "crosswalk.csv")
    made.fill_omop(f"sqlite:///{tmp_path}/cdm.db", patients)
    cohort = made.COHORT.format(source=f'omop: {{url: "sqlite:///{tmp_path}/cdm.db"}}')
    (tmp_path / "lung.yaml").write_text(cohort)
    (tmp_path / "job.yaml").write_text(_JOB)
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(sorted((make_site(tmp_path / "made", _CASES) / "imagesTr").iterdir()), 1):
        image.rename(images / f"PAT-{number}.nii.gz")
    values = {"schema": 1, "name": "lung", "job": "job.yaml", "cohort": "lung.yaml", "images": {"folder": "images"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "study.yaml"


def test_a_cohort_becomes_a_checked_dataset_and_the_next_time_says_what_changed(study: Path, run) -> None:  # type: ignore[no-untyped-def]
    workspace = ("--workspace", study.parent / "workspace")
    first = run("data", "onboard", study, "--json", *workspace)
    found = json.loads(first.output)
    assert found["may_train"], found
    assert found["figures"]["cases with an outcome"] >= _CASES // 2
    assert found["changes"] == []
    page = Path(found["page"])
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "was observed then" in page.read_text()
    assert "Since the last time" not in page.read_text()
    # The next month a scan and its patient are gone, and a record says something else.
    (study.parent / "images" / "PAT-1.nii.gz").unlink()
    text = (study.parent / "crosswalk.csv").read_text()
    (study.parent / "crosswalk.csv").write_text(text.replace("MRN000001,PAT-1\n", ""))
    second = run("data", "onboard", study, *workspace)
    assert "since the last time: cases 14, now 13" in second.text
    assert "1 gone" in second.text
    assert "Since the last time" in page.read_text()
    third = json.loads(run("data", "onboard", study, "--json", *workspace).output)
    assert third["changes"] == []
    assert third["cohort_changes"] == {"new": 0, "gone": 0, "other": 0}


def test_what_does_not_fit_is_said_and_ends_with_status_3(study: Path, run) -> None:  # type: ignore[no-untyped-def]
    job = yaml.safe_load(_JOB)
    job["data"]["minimum_cases"] = 100
    (study.parent / "job.yaml").write_text(yaml.safe_dump(job))
    outcome = run("data", "onboard", study, "--workspace", study.parent / "workspace")
    assert outcome.status == 3
    assert "The job does not train here" in outcome.text


def test_a_database_that_is_gone_leaves_what_was_there(study: Path, run) -> None:  # type: ignore[no-untyped-def]
    workspace = ("--workspace", study.parent / "workspace")
    run("data", "onboard", study, *workspace)
    table = study.parent / "workspace" / "datasets" / "lung" / "cohort" / "outcomes.csv"
    before = table.read_bytes()
    (study.parent / "cdm.db").rename(study.parent / "away.db")
    outcome = run("data", "onboard", study, *workspace)
    assert outcome.status == 2
    assert "found no file where its address says" in outcome.text
    assert table.read_bytes() == before


@pytest.mark.xdist_group("orthanc")
@pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one")
@pytest.mark.parametrize("deidentify", [False, True])
def test_images_come_from_the_archive_and_outcomes_find_them(
    study: Path,
    run,  # type: ignore[no-untyped-def]
    deidentify: bool,
) -> None:
    folder, workspace = study.parent, ("--workspace", study.parent / "workspace")
    with Orthanc(folder / "orthanc") as orthanc:
        for number in range(1, 9):
            patient = f"PAT-{number}"
            orthanc.add(make_series(folder / "sent" / patient, volume(), patient=patient, modality="CT"))
        settings = orthanc.pacs("web", **({"deidentify": {}} if deidentify else {}))
        (folder / "pacs.yaml").write_text(yaml.safe_dump(settings))
        values = yaml.safe_load(study.read_text())
        values["images"] = {"folder": "pulled", "pacs": "pacs.yaml"}
        study.write_text(yaml.safe_dump(values))
        (folder / "job.yaml").write_text(_JOB.replace("modality: mri", "modality: ct"))
        outcome = run("data", "onboard", study, "--json", *workspace)
        assert outcome.output, outcome.text
        first = json.loads(outcome.output)
        assert first["figures"]["cases with an outcome"] == first["figures"]["cases"] >= 5
        # The next month another patient's scan is there.
        orthanc.add(make_series(folder / "sent" / "PAT-9", volume(), patient="PAT-9", modality="CT"))
        second = json.loads(run("data", "onboard", study, "--json", *workspace).output)
    found = {change["what"]: change["now"] - change["then"] for change in second["changes"]}
    assert found["cases"] == found["cases with an outcome"] == 1
    table = (folder / "workspace" / "datasets" / "lung" / "cohort" / "outcomes.csv").read_text()
    assert ("PAT-" in table) is not deidentify


@pytest.mark.xdist_group("orthanc")
@pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one")
def test_who_left_the_cohort_or_the_archive_leaves_the_dataset(study: Path, run) -> None:  # type: ignore[no-untyped-def]
    folder, kit = study.parent, study.parent / "kit"
    (kit / "startup").mkdir(parents=True)
    (kit / "local").mkdir()
    (kit / "local" / "policy.json").write_text(Policy().model_dump_json(by_alias=True))
    arguments = ("data", "onboard", study, "--site", kit, "--workspace", folder / "workspace")
    with Orthanc(folder / "orthanc") as orthanc:
        for number in range(1, 7):
            patient = f"PAT-{number}"
            sent = make_series(folder / "sent" / patient, volume(), patient=patient, modality="CT")
            orthanc.add(sent)
        (folder / "pacs.yaml").write_text(yaml.safe_dump(orthanc.pacs("web")))
        values = yaml.safe_load(study.read_text())
        values["images"] = {"folder": "pulled", "pacs": "pacs.yaml"}
        study.write_text(yaml.safe_dump(values))
        (folder / "job.yaml").write_text(_JOB.replace("modality: mri", "modality: ct"))
        first = json.loads(run(*arguments, "--json").output)
        assert any("the archive has nothing for" in note for note in first["pull"])
        kept = {row["patient"]: row["file"] for row in _rows(folder / "pulled" / "pulled.csv")}
        assert first["figures"]["cases"] == len(kept) >= 4
        text = (folder / "crosswalk.csv").read_text()
        gone = next(n for n in range(1, 7) if f"\nPAT-{n}" in (_tables(folder) / "patients.csv").read_text())
        (folder / "crosswalk.csv").write_text(
            "".join(line for line in text.splitlines(keepends=True) if not line.endswith(f",PAT-{gone}\n"))
        )
        second = run(*arguments)
        assert f"cases {len(kept)}, now {len(kept) - 1}" in second.text
        assert "objects here are not of this cohort" in second.text
        # Another one's study is deleted in the archive.
        orthanc.call("DELETE", f"/patients/{orthanc.call('GET', '/patients')[0]}")
        (folder / "crosswalk.csv").write_text(text)
        third = json.loads(run(*arguments, "--json").output)
    assert third["figures"]["cases"] == len(kept) - 1
    assert any("have vanished from the archive" in note for note in third["pull"])
    assert "have vanished from the archive" in Path(third["page"]).read_text()
    told = (kit / "audit" / "audit.jsonl").read_text()
    assert told.count("images pulled from the archive") == 3


@pytest.mark.xdist_group("orthanc")
@pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one")
def test_objects_that_did_not_arrive_end_with_status_1_and_are_on_the_page(study: Path, run) -> None:  # type: ignore[no-untyped-def]
    folder = study.parent
    with Orthanc(folder / "orthanc", {"StorageAccessOnFind": "Never", "MaximumStorageCacheSize": 0}) as orthanc:
        for number in range(1, 8):
            patient = f"PAT-{number}"
            files = make_series(folder / "sent" / patient, volume(seed=number), patient=patient, modality="CT")
            orthanc.add(files)
        stored = [path for path in (orthanc.folder / "database").glob("*/*/*") if path.is_file()]
        (lost,) = [path for path in stored if path.read_bytes() == files[3].read_bytes()]
        lost.unlink()
        (folder / "pacs.yaml").write_text(yaml.safe_dump(orthanc.pacs("get", patience_minutes=0.1)))
        values = yaml.safe_load(study.read_text())
        values["images"] = {"folder": "pulled", "pacs": "pacs.yaml"}
        study.write_text(yaml.safe_dump(values))
        (folder / "job.yaml").write_text(_JOB.replace("modality: mri", "modality: ct"))
        outcome = run("data", "onboard", study, "--workspace", folder / "workspace")
    assert outcome.status == 1, outcome.text
    assert "1 objects did not arrive" in outcome.text
    page = (folder / "workspace" / "datasets" / "lung" / "onboarding.html").read_text()
    assert "1 objects did not arrive" in page


def _tables(folder: Path) -> Path:
    return folder / "workspace" / "datasets" / "lung" / "cohort"


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as content:
        return list(csv.DictReader(content))


def test_a_mistake_in_the_file_is_named(study: Path, run) -> None:  # type: ignore[no-untyped-def]
    study.write_text(study.read_text().replace("images:", "image:"))
    outcome = run("data", "onboard", study)
    assert outcome.status == 2
    assert "unknown setting image" in outcome.text
