"""From an Orthanc and a PostgreSQL to a federated survival run and a SEG in the archive, as the page says it."""

from __future__ import annotations

import json
import re
import urllib.request
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from pydicom.sr.coding import Code

import made_records as made
from commands import oncofed
from dicoms import make_seg, make_series, volume
from oncofed.privacy.policy import Policy
from oncofed.report.result import read_result
from orthancs import Orthanc, why_no_orthanc
from postgres import postgres, why_no_postgres

_PAGE = (Path(__file__).parents[2] / "docs" / "hospital.md").read_text(encoding="utf-8")
_WHY = why_no_orthanc() or why_no_postgres()
_SHAPE, _PATIENTS = (16, 16, 8), 14


def _file(title: str) -> str:
    found = re.search(rf'^```yaml title="{title}"\n(.*?)^```', _PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def _commands() -> list[str]:
    """Return the page's commands, without their first word."""
    block = _PAGE.partition("predictions go back:")[2].partition("```\n\n")[0]
    return re.findall(r"^oncofed (.*)$", block, re.MULTILINE)


def _hospital(folder: Path, patients: list[made.Patient], url: str, orthanc: Orthanc, name: str) -> None:
    """A hospital: its records, its archive's images with segments of its own name, its files."""
    folder.mkdir()
    made.fill_omop(url, patients, folder.name)
    made.write_crosswalk(patients, folder / "crosswalk.csv")
    (folder / "cdm.address").write_text(url)
    (folder / "cdm.address").chmod(0o600)
    (folder / "study.yaml").write_text(_file("study.yaml").replace("SITE", folder.name))
    (folder / "lung.yaml").write_text(_file("lung.yaml").replace("SCHEMA", folder.name))
    (folder / "pacs.yaml").write_text(_file("pacs.yaml").replace("8042", str(orthanc.http)))
    mask = np.zeros(_SHAPE, bool)
    mask[2:5, 3:9, 1:6] = True

    def coded(dataset: pydicom.Dataset) -> None:
        kind = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
        kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = "108369006", "SCT", "Neoplasm"

    for patient in patients:
        identity = f"PAT-{patient.number}"
        values = volume(_SHAPE, patient.number)
        series = make_series(folder / "scans" / identity, values, patient=identity, modality="CT")
        seg = make_seg(folder / "scans" / identity / "seg.dcm", series, {name: mask}, change=coded)
        orthanc.add([*series, seg])


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.xdist_group("orthanc")
@pytest.mark.skipif(bool(_WHY), reason=_WHY or "there are both")
def test_from_an_archive_and_a_database_to_a_run_and_a_seg(tmp_path: Path) -> None:
    everyone = made.make_patients(2 * _PATIENTS)
    sites = {"east": (everyone[:_PATIENTS], "Tumour mass"), "west": (everyone[_PATIENTS:], "Raumforderung")}
    kit = tmp_path / "kit"
    (kit / "local").mkdir(parents=True)
    policy = Policy.model_validate({"pacs": {"push": True}})
    (kit / "local" / "policy.json").write_text(policy.model_dump_json(by_alias=True), encoding="utf-8")
    job = _file("job.yaml").replace("number: 5", "number: 1").replace("steps_per_round: 20", "steps_per_round: 2")
    (tmp_path / "job.yaml").write_text(job)
    with postgres() as (url, _), Orthanc(tmp_path / "orthanc") as orthanc:
        for site, (patients, name) in sites.items():
            _hospital(tmp_path / site, patients, url, orthanc, name)
        stored = orthanc.count
        for line in _commands():
            done = oncofed(*line.replace("KIT", str(kit)).split(), home=tmp_path)
            assert done.returncode == 0, (line, done.stdout[-3000:], done.stderr[-3000:])
        new = [
            dataset
            for name in orthanc.call("GET", "/instances")
            if (dataset := _read(orthanc, name)).get("Manufacturer") == "oncofed"
        ]
        assert orthanc.count - stored == len(new)
    dataset_json = json.loads((tmp_path / "workspace" / "datasets" / "east" / "dataset.json").read_text())
    cases = [entry for split in ("training", "validation", "test") for entry in dataset_json[split]]
    assert all("survival" in entry["targets"] for entry in cases)
    segs = [dataset for dataset in new if dataset.Modality == "SEG"]
    assert 5 <= len(segs) <= len(cases)
    # What the archive has is the tumour, of a study of its own, and a report of the survival.
    assert {dataset.Modality for dataset in new} == {"SEG", "SR"}
    for dataset in segs:
        assert dataset.PatientID in {f"PAT-{patient.number}" for patient in sites["east"][0]}
        seg = segread(_bytes(dataset))
        assert seg.get_segment_description(1).segmented_property_type == Code("108369006", "SCT", "Neoplasm")
    assert set(read_result(tmp_path / "run").sites) == {"east", "west"}


def _read(orthanc: Orthanc, name: str) -> pydicom.Dataset:
    with urllib.request.urlopen(f"http://127.0.0.1:{orthanc.http}/instances/{name}/file") as answer:
        return pydicom.dcmread(BytesIO(answer.read()))


def _bytes(dataset: pydicom.Dataset) -> BytesIO:
    content = BytesIO()
    dataset.save_as(content)
    content.seek(0)
    return content
