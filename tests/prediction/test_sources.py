"""What of a user's inputs a model is to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dicoms import OBLIQUE, make_series
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec, parse_job
from oncofed.prediction.sources import Sources, file_name, gather
from pictures import pictures
from synthetic import make_site, make_textures, write_job
from trained import CLASSIFIER, FLAT


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four volumes without masks.

    The folder's name has a space and non-ASCII letters.
    """
    folder = tmp_path / "Bilder für später"
    shutil.copytree(make_site(tmp_path / "made", 4) / "imagesTr", folder)
    return folder


def read(inputs: list[Path | str], out: Path, job: JobSpec, **more: object) -> Sources:
    return gather(inputs, out, job, out.parent / "datasets", workers=1, **more)  # type: ignore[arg-type]


def names(sources: Sources) -> list[str]:
    return [source.name for source in sources.cases]


def test_a_folder_is_registered_and_what_is_broken_set_aside(images: Path, tmp_path: Path, spec: JobSpec) -> None:
    (images / "case_2.nii.gz").write_bytes(b"no image")
    found = read([images], tmp_path / "out", spec)
    assert names(found) == ["case_0", "case_1", "case_3"]
    (bad,) = found.set_aside
    assert bad.name == "case_2"
    assert "does not begin with a NIfTI header" in bad.reason
    assert not any(source.labelled or source.case.label or source.series for source in found.cases)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".inputs"]


def test_named_files_are_read_without_their_neighbours(images: Path, tmp_path: Path, spec: JobSpec) -> None:
    (images / "notes.txt").write_text("not an image")
    found = read([images / "case_1.nii.gz", images / "notes.txt"], tmp_path / "out", spec)
    assert names(found) == ["case_1"]
    assert [(bad.name, bad.reason) for bad in found.set_aside] == [("notes.txt", "file that is no image (.txt)")]


def test_a_header_brings_its_data_file(images: Path, tmp_path: Path, spec: JobSpec) -> None:
    sitk = pytest.importorskip("SimpleITK")
    values = nib.load(images / "case_0.nii.gz").get_fdata().astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values), tmp_path / "apart.mhd")
    found = read([tmp_path / "apart.mhd"], tmp_path / "out", spec)
    assert (names(found), found.set_aside) == (["apart"], [])


def test_images_of_one_name_in_two_folders_keep_their_names_whatever_the_order(tmp_path: Path, spec: JobSpec) -> None:
    one, two = (make_site(tmp_path / name, 2, seed) / "imagesTr" for seed, name in enumerate(("one", "two")))
    first = read([one, two], tmp_path / "out", spec)
    assert names(first) == ["case_0", "case_1", "case_0-2", "case_1-2"]
    again = read([two, one], tmp_path / "out", spec)
    assert {s.name: s.entry.checksum for s in again.cases} == {s.name: s.entry.checksum for s in first.cases}
    assert names(read([two], tmp_path / "out", spec)) == ["case_0-2", "case_1-2"]


def test_a_dataset_by_name_or_folder_is_taken_as_it_is(tmp_path: Path, spec: JobSpec) -> None:
    site = make_site(tmp_path / "made", 3)
    (site / "imagesTs").mkdir()
    shutil.copy(site / "imagesTr" / "case_0.nii.gz", site / "imagesTs" / "new.nii.gz")
    values = json.loads((site / "dataset.json").read_text())
    (site / "dataset.json").write_text(json.dumps({**values, "test": ["./imagesTs/new.nii.gz"]}))
    by_folder = read([site], tmp_path / "out", spec)
    assert {source.name: source.labelled for source in by_folder.cases} == {
        "case_0": True,
        "case_1": True,
        "case_2": True,
        "new": False,
    }
    dataset = tmp_path / "datasets" / "balls"
    dataset.parent.mkdir()
    register(RegisterOptions(site, "balls", dataset, labels={1: "shell", 2: "core"}, workers=1))
    by_name = read(["balls"], tmp_path / "out", spec)
    assert all(source.case.image.is_relative_to(dataset) for source in by_name.cases)
    assert sum(source.labelled for source in by_name.cases) == 3


def test_labels_that_are_not_the_jobs_are_no_reason_not_to_predict(tmp_path: Path, spec: JobSpec) -> None:
    site = make_site(tmp_path / "made", 3)
    register(RegisterOptions(site, "balls", tmp_path / "set", labels={1: "liver", 2: "spleen"}, workers=1))
    found = read([tmp_path / "set"], tmp_path / "out", spec)
    assert len(found.cases) == 3
    assert not any(source.labelled for source in found.cases)
    assert f"labels of {tmp_path / 'set'} are not used: its label 'liver' is none of the job's; say" in found.notes[0]
    for image in (site / "imagesTr").iterdir():
        image.rename(image.with_name(image.name.replace(".nii", "_0000.nii")))
    of_nnunet = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "numTraining": 3}
    (site / "dataset.json").write_text(json.dumps({**of_nnunet, "file_ending": ".nii.gz"}))
    loose = read([site], tmp_path / "other", spec)
    assert len(loose.cases) == 3
    [note] = [note for note in loose.notes if "not used" in note]
    assert note == f"labels of {site} are not used: its label 'liver' is none of the job's"


def test_a_broken_label_is_no_reason_not_to_look_at_the_image(tmp_path: Path, spec: JobSpec) -> None:
    site = make_site(tmp_path / "made", 2)
    (site / "labelsTr" / "case_1.nii.gz").write_bytes(b"")
    found = read([site], tmp_path / "out", spec)
    assert {source.name: source.labelled for source in found.cases} == {"case_0": True, "case_1": False}


def test_a_series_knows_its_files_also_when_they_are_named_one_by_one_in_two_folders(
    tmp_path: Path, spec: JobSpec
) -> None:
    make_series(tmp_path / "pacs", orientation=OBLIQUE)
    files = sorted(path for path in (tmp_path / "pacs").rglob("*") if path.is_file())
    (whole,) = read([tmp_path / "pacs"], tmp_path / "out", spec).cases
    assert sorted(path.resolve() for path in whole.series) == files
    (tmp_path / "other").mkdir()
    moved = [files[0].rename(tmp_path / "other" / "a"), *files[1:]]
    (named,) = read(list(moved), tmp_path / "second", spec).cases
    assert sorted(path.resolve() for path in named.series) == sorted(moved)
    assert named.entry.shape == whole.entry.shape


def test_a_series_that_lacks_a_slice_is_set_aside(tmp_path: Path, spec: JobSpec) -> None:
    make_series(tmp_path / "pacs")
    files = sorted(path for path in (tmp_path / "pacs").rglob("*") if path.is_file())
    files[3].unlink()
    found = read([tmp_path / "pacs"], tmp_path / "out", spec)
    assert not found.cases
    assert "slice" in found.set_aside[0].reason


@pytest.mark.parametrize(
    ("shape", "changes", "reason"),
    [
        ((20, 20, 20, 2), {}, "its image has 2 channels, expected 1"),
        ((20, 20, 20), {"spacing_range": [2, 3]}, "its voxels are 1 x 1 x 1 mm, expected 2 to 3 mm a side"),
        ((20, 20, 9), {"size_range": [12, 40]}, "its image has 20x20x9 voxels, expected 12 to 40 a side"),
    ],
)
def test_what_does_not_fit_the_job_is_set_aside(
    tmp_path: Path, spec: JobSpec, shape: tuple[int, ...], changes: dict[str, object], reason: str
) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "odd.nii")
    found = read([tmp_path / "odd.nii"], tmp_path / "out", spec.changed({"data": changes}))
    assert not found.cases
    assert reason in found.set_aside[0].reason


def test_a_flat_image_is_no_volume_and_colour_becomes_grey(tmp_path: Path, spec: JobSpec) -> None:
    flat = pictures(tmp_path / "flat", "a.png")
    (bad,) = read([flat], tmp_path / "out", spec).set_aside
    assert bad.reason == "its image is a flat image, expected a volume"
    grey = parse_job(write_job(tmp_path / "job", FLAT))
    colour = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    (found,) = read([tmp_path / "colour.png"], tmp_path / "out", grey).cases
    assert found.entry.channels == 3


def test_pixels_of_unknown_size_are_refused_where_the_job_resamples(tmp_path: Path) -> None:
    job = parse_job(write_job(tmp_path / "job", FLAT)).changed({"data": {"spacing": [0.5, 0.5]}})
    (bad,) = read([pictures(tmp_path / "flat", "a.png")], tmp_path / "out", job).set_aside
    assert "does not say how large its pixels are" in bad.reason


def test_class_folders_label_what_they_hold(tmp_path: Path) -> None:
    job = parse_job(write_job(tmp_path / "job", CLASSIFIER))
    found = read([make_textures(tmp_path / "in", ["broad", "narrow"], 2, colours=1)], tmp_path / "out", job)
    assert [(source.case.label, source.labelled) for source in found.cases] == [(0, True)] * 2 + [(1, True)] * 2


def test_only_picks_cases_by_name_or_path(images: Path, tmp_path: Path, spec: JobSpec) -> None:
    assert names(read([images], tmp_path / "out", spec, only=["*_1", "case_3.nii*"])) == ["case_1", "case_3"]
    with pytest.raises(SpecError, match=r"--only liver\*: no case has such a name; there are case_0, case_1, case_2"):
        read([images], tmp_path / "out", spec, only=["liver*"])


def test_predictions_in_the_images_folder_are_no_images(images: Path, tmp_path: Path, spec: JobSpec) -> None:
    out = images / "deep" / "out"
    shutil.copytree(images, out / "cases")
    found = read([images], out, spec)
    assert names(found) == ["case_0", "case_1", "case_2", "case_3"]
    with pytest.raises(SpecError, match="lies in --out"):
        read([out / "cases"], out, spec)


def test_inputs_without_images_are_reported(tmp_path: Path, spec: JobSpec) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image found"):
        read([tmp_path / "empty"], tmp_path / "out", spec)
    with pytest.raises(DataError, match="nowhere: no such file or folder, and no dataset of that name"):
        read(["nowhere"], tmp_path / "out", spec)
    text = tmp_path / "a.txt"
    text.write_text("")
    with pytest.raises(DataError, match="no image found") as refused:
        read([text], tmp_path / "out", spec)
    assert ".inputs" not in str(refused.value)


def test_an_empty_folder_beside_a_good_one_is_set_aside(images: Path, tmp_path: Path, spec: JobSpec) -> None:
    (tmp_path / "empty").mkdir()
    found = read([tmp_path / "empty", images], tmp_path / "out", spec)
    assert len(found.cases) == 4
    assert [bad.name for bad in found.set_aside] == ["empty"]


@pytest.mark.parametrize(
    ("name", "safe"), [("../../etc/x", "_.._etc_x"), ("a\nb", "a_b"), ("..", "case"), ("Müller 1", "Müller 1")]
)
def test_a_cases_name_cannot_be_a_path(name: str, safe: str) -> None:
    assert file_name(name) == safe
