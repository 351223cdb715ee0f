"""No planted identifier reaches the server.

Identifiers are planted wherever a site may have them; all that the server received is searched.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from commands import oncofed
from dicoms import make_seg, make_series
from synthetic import make_volume, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]

JOB = """\
schema: 1
name: lesions
title: Lesions
data: {dataset: lesions, patch: [16, 16, 16], minimum_cases: 3, max_bad_share: 0.6}
task: {type: segmentation, classes: {1: lesion}}
model: {network: unet, channels: [4, 8], residual_units: 1}
training: {steps_per_round: 3, batch_size: 2, warmup_steps: 0}
rounds: {number: 2}
"""
PROFILE = """\
schema: 1
name: shapes
title: What the volumes are like
profile: {dataset: lesions, modality: mri, dimensions: 3, classes: {1: lesion}}
"""
CANARY = b"canary"


def _identifying(number: int, dataset: Dataset) -> None:
    dataset.PatientName = "Canary^Name"
    dataset.InstitutionName = "Canary Hospital"
    dataset.OperatorsName = "Canary^Operator"
    dataset.AccessionNumber = "CANARYACC"
    dataset.StudyDescription = dataset.SeriesDescription = "canary description"
    dataset.Manufacturer = "Canary Devices"
    block = dataset.private_block(0x0011, "CANARY CORP", create=True)
    block.add_new(0x01, "LO", "canary private")


def _dicom_site(folder: Path) -> Path:
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 60, (16, 16, 16)).astype(np.int16)
        values[4:10, 4:10, 4:10] += 300
        case = folder / f"Canary_Name_{number}"
        files = make_series(case, values, patient=f"CANARY-MRN-{number}", change=_identifying, spacing=(1, 1, 1))
        mask = np.zeros((16, 16, 16), bool)
        mask[4:10, 4:10, 4:10] = True
        make_seg(case / "canary-seg.dcm", files, {"canary lesion": mask})
    # One series cannot be read: its reason is written where it stays.
    files[3].unlink()
    return folder


def _nifti_site(folder: Path) -> Path:
    rows = ["image,label,patient,canary_column"]
    for number in range(6):
        for sub, values in zip(("images", "labels"), make_volume(number), strict=True):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image((values > 0).astype(np.uint8) if sub == "labels" else values, np.eye(4))
            image.header["descrip"] = b"Canary^Name"
            nib.save(image, folder / sub / f"Canary_Name_{number}.nii.gz")
        name = f"Canary_Name_{number}.nii.gz"
        rows.append(f"images/{name},labels/{name},CANARY-MRN-{number},canary value")
    (folder / "canary.csv").write_text("\n".join(rows))
    (folder / "images" / "Canary_Name_5.nii.gz").write_bytes(b"canary, and no image")
    return folder


def _require(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and a profile over sites full of identifiers.

    All files are kept.
    """
    root = tmp_path_factory.mktemp("runs")
    workspace = root / "workspace"
    for site, make, labels in (("east", _dicom_site, "canary lesion"), ("west", _nifti_site, None)):
        source = make(tmp_path_factory.mktemp("Canary_Hospital") / f"canary_{site}")
        arguments = ["data", "register", source, "--dataset", site, "--workspace", workspace]
        _require(oncofed(*arguments, *(["--labels", labels] if labels else []), home=root))
        manifest = workspace / "datasets" / site / "dataset.json"
        values = json.loads(manifest.read_text())
        assert len(values["training"]) == 5
        assert len(values["quarantine"]) == 1
        values["description"] = "canary description"
        if labels:
            values["label_map"] = {labels: "lesion"}
        manifest.write_text(json.dumps(values))
    sites = ["--site", "east=east", "--site", "west=west", "--workspace", workspace, "--keep"]
    job = write_job(root / "lesions", JOB)
    _require(oncofed("job", "run", job, *sites, "--out", root / "trained", "--no-baselines", home=root))
    shapes = write_job(root / "shapes", PROFILE)
    _require(oncofed("job", "run", shapes, *sites, "--out", root / "profiled", home=root))
    return root


@pytest.mark.thorough
@pytest.mark.parametrize("run", ["trained", "profiled"])
def test_the_server_received_no_identifier(ran: Path, run: str) -> None:
    (server,) = (ran / run).rglob("localhost")
    files = [path for path in server.rglob("*") if path.is_file()]
    files += [ran / run / "logs" / "server.txt"]
    received = {path: path.read_bytes() for path in files}
    assert any(path.name == "events.jsonl" or b"finished" in content for path, content in received.items())
    found = [
        str(path) for path, content in received.items() if CANARY in content.lower() or CANARY in path.name.encode()
    ]
    assert found == []


@pytest.mark.parametrize("name", ["result.json", "plan.json", "report.html", "model"])
def test_what_the_engineer_gets_holds_no_identifier(ran: Path, name: str) -> None:
    paths = [*(ran / "trained").glob(name), *(ran / "profiled").glob(name)]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    assert files
    assert [file for file in files if CANARY in file.read_bytes().lower()] == []


def test_the_sites_own_logs_say_which_case_was_set_aside(ran: Path) -> None:
    logs = (ran / "trained" / "logs" / "west.txt").read_text() + "".join(
        path.read_text(errors="replace") for path in (ran / "trained").rglob("west/**/*.txt")
    )
    kept = (ran / "workspace" / "datasets" / "west" / "dataset.json").read_text()
    assert "set aside" in logs or "Canary_Name_5" in kept


def test_fewer_patients_than_the_floor_are_in_no_histogram(ran: Path) -> None:
    plan = json.loads((ran / "profiled" / "plan.json").read_text())
    assert plan["patients"] == {"east": 5, "west": 5}
    for bins in plan["statistics"]["histogram"].values():
        assert all(count == 0 or count >= 5 for _, _, count in bins)
