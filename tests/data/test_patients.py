"""Patients of images after an anonymiser merged their IDs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicoms import make_series, volume
from oncofed.data.cases import read_cases
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import Manifest, write_manifest
from oncofed.data.mixtures import mixtures
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import SplitSpec
from oncofed.errors import DataError
from synthetic import make_site, make_volume

REPORTS = "RSNA/anonymizer#18, shanoir-ng#3160, matRad#273"


def read(tmp_path: Path, **settings: object) -> Manifest:
    return register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1, **settings))  # type: ignore[arg-type]


def make_heap(folder: Path, patient: str = "ANONYMOUS") -> None:
    for number in range(6):
        make_series(folder / f"p{number}" / "ct", volume(seed=number), patient=patient)


@pytest.mark.wild(REPORTS, "one PatientID for all")
def test_a_shared_id_is_reported_and_studies_are_suggested(tmp_path: Path) -> None:
    make_heap(tmp_path / "in")
    manifest = read(tmp_path)
    ((kind, what),) = mixtures(manifest)
    assert kind == "one patient"
    assert "all 6 cases are of one patient (6 studies under one PatientID)" in what
    assert "--patient-from study" in what
    names = {entry.name for entry in manifest.entries}

    by_study = read(tmp_path, patient_from="study")
    assert len({entry.patient for entry in by_study.entries}) == 6
    assert {entry.name for entry in by_study.entries} == names
    assert list(mixtures(by_study)) == []
    again = read(tmp_path)
    assert again.patient_from == "study"
    assert again.entries == by_study.entries
    assert len({entry.patient for entry in read(tmp_path, patient_from="id").entries}) == 1


@pytest.mark.wild(REPORTS, "one PatientID and one set of UIDs for all, each patient in a folder")
def test_shared_uids_are_reported_and_folders_are_suggested(tmp_path: Path) -> None:
    for number in range(4):

        def repeated(index: int, dataset: Dataset) -> None:
            dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.5"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{index}"

        folder = tmp_path / "in" / f"pat{number}" / "MR"
        make_series(folder, volume(seed=number), patient="ANON", series="1.2.3.4", change=repeated)
    manifest = read(tmp_path)
    ((kind, what),) = mixtures(manifest)
    assert kind == "one patient"
    assert what.startswith("4 cases of one patient have one SeriesInstanceUID")
    assert "--patient-from folder" in what
    by_folder = read(tmp_path, patient_from="folder")
    assert len({entry.patient for entry in by_folder.entries}) == 4
    assert list(mixtures(by_folder)) == []


@pytest.mark.wild(REPORTS, "one PatientID for all, and a study of several series")
def test_series_and_folders_as_patients(tmp_path: Path) -> None:
    make_heap(tmp_path / "in")
    make_series(tmp_path / "in" / "p0" / "mr", volume(seed=9), patient="ANONYMOUS")
    by_folder = read(tmp_path, patient_from="folder")
    assert len({entry.patient for entry in by_folder.entries}) == 6
    by_series = read(tmp_path, patient_from="series")
    assert len({entry.patient for entry in by_series.entries}) == 7


@pytest.mark.wild(REPORTS, "one PatientID for all, when a job reads its cases")
def test_a_dataset_of_one_patient_is_refused_with_advice(tmp_path: Path) -> None:
    make_heap(tmp_path / "in")
    table = tmp_path / "t.csv"
    table.write_text("patient,label\nANONYMOUS,a\n")
    read(tmp_path, table=table, task="classification")
    cases = read_cases(tmp_path / "out", SplitSpec(), 0, Supervision("class"))
    with pytest.raises(DataError, match="all 6 cases are of one patient, so that none can be held out"):
        cases.require_training("here")
    # The class is still found by the ID that the table knows.
    read(tmp_path, table=table, task="classification", patient_from="study")
    assert len(read_cases(tmp_path / "out", SplitSpec(), 0, Supervision("class")).require_training("here").train) < 6


def test_a_patient_with_many_visits_is_not_a_mixture(tmp_path: Path) -> None:
    make_heap(tmp_path / "in")
    for number in range(7):
        make_series(tmp_path / "in" / f"q{number}", volume(seed=20 + number), patient=f"Q{number}")
    assert list(mixtures(read(tmp_path))) == []


@pytest.mark.wild(REPORTS, "a rule for patients that is none for the folder's files, unsaid")
def test_a_rule_for_dicom_is_reported_as_unused_for_other_files(tmp_path: Path) -> None:
    make_site(tmp_path / "in")
    manifest = read(tmp_path, patient_from="study")
    [remark] = manifest.remarks
    assert remark.startswith("--patient-from study tells patients of DICOM apart and changes nothing for 6 cases of ")
    assert manifest.patient_from == "id"
    assert read(tmp_path).remarks == []
    one = [entry.model_copy(update={"patient": "one"}) for entry in manifest.entries]
    write_manifest(tmp_path / "out", manifest.model_copy(update={"training": one}))
    with pytest.raises(DataError, match=r"one patient, .* in a table \(image, label, patient\)") as refused:
        read_cases(tmp_path / "out", SplitSpec(), 0).require_training("here")
    assert "--patient-from" not in str(refused.value)


@pytest.mark.wild(REPORTS, "a rule for patients that is one for the DICOM of the folder alone, unsaid")
def test_a_rule_for_dicom_next_to_other_files_is_kept_and_reported(tmp_path: Path) -> None:
    make_heap(tmp_path / "in" / "pacs")
    image, _ = make_volume(0)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "in" / "one.nii.gz")
    manifest = read(tmp_path, patient_from="study")
    [remark] = manifest.remarks
    assert "for 1 case of other files: one" in remark
    assert manifest.patient_from == "study"
    assert len({entry.patient for entry in manifest.entries}) == 7
