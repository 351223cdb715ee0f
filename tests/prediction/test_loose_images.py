"""Each kind of model reads images without labels.

Of every format, alone and many, at any depth.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from oncofed.job.spec import parse_job
from oncofed.prediction.sources import Sources, gather
from pictures import pictures
from slide_files import noisy, stained
from synthetic import JOB, make_textures, write_job
from trained import CLASSIFIER, FLAT, NUCLEI, SLIDES

FLAT_SUFFIXES = (".png", ".jpg", ".tif")
VOLUME_CLASSIFIER = CLASSIFIER.replace("modality: xray, patch: [32, 32]", "modality: mri, patch: [32, 32, 32]")
KINDS = {
    "volumes": (JOB, (".nii.gz",)),
    "flat": (FLAT, FLAT_SUFFIXES),
    "objects": (NUCLEI, FLAT_SUFFIXES),
    "classes": (CLASSIFIER, FLAT_SUFFIXES),
    "classes of volumes": (VOLUME_CLASSIFIER, (".nii.gz",)),
    "slides": (SLIDES, (".tif",)),
}
PLACES = {
    "one": ("a",),
    "many": ("a", "b", "c"),
    "one deep": ("x/a", "x/b"),
    "two folders": ("x/a", "x/b", "y/c", "y/d"),
    "two deep": ("x/y/a", "x/z/b", "c"),
}


def write_image(path: Path, seed: int) -> None:
    """Write noise of a format's usual size and colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(rng.normal(size=(32, 32, 32)).astype(np.float32), np.eye(4)), path)
        return
    colour = rng.integers(0, 255, (256, 320, 3), np.uint8)
    if path.suffix == ".tif":
        size = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(path, noisy(stained(), seed=seed), tile=(128, 128), photometric="rgb", **size)
    else:
        Image.fromarray(colour if seed % 2 else colour[..., 0]).save(path)


def read(source: Path, out: Path, text: str) -> Sources:
    job = parse_job(write_job(out.with_name(f"job of {out.name}"), text))
    return gather([source], out, job, out.parent / "datasets", workers=1)


CASES = [(kind, suffix, place) for kind, (_, suffixes) in KINDS.items() for suffix in suffixes for place in PLACES]


@pytest.mark.parametrize(("kind", "suffix", "place"), CASES)
def test_loose_images_are_read_by_every_kind_of_model(kind: str, suffix: str, place: str, tmp_path: Path) -> None:
    paths = [tmp_path / "in" / f"{name}{suffix}" for name in PLACES[place]]
    for seed, path in enumerate(paths):
        write_image(path, seed)
    found = read(tmp_path / "in", tmp_path / "out", KINDS[kind][0])
    assert found.set_aside == []
    assert sorted(source.entry.source or "" for source in found.cases) == sorted(f"{n}{suffix}" for n in PLACES[place])
    assert not any(source.labelled for source in found.cases)
    if place == "one":
        (alone,) = read(paths[0], tmp_path / "out alone", KINDS[kind][0]).cases
        assert alone.name == "a"


def test_folders_named_after_classes_are_labels_and_others_are_read_too(tmp_path: Path) -> None:
    make_textures(tmp_path / "in", ["broad", "narrow"], each=2)
    pictures(tmp_path / "in", "stray.png", "others/more.png")
    found = read(tmp_path / "in", tmp_path / "out", CLASSIFIER)
    known = {source.entry.source: source.case.label if source.labelled else None for source in found.cases}
    assert {path.split("/")[0]: label for path, label in known.items() if path} == {
        "broad": 0,
        "narrow": 1,
        "stray.png": None,
        "others": None,
    }
    assert (len(known), found.set_aside) == (6, [])


def test_a_folder_of_one_class_is_known_as_that(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "test/Narrow/a.png", "test/Narrow/b.png")
    found = read(tmp_path / "in", tmp_path / "out", CLASSIFIER)
    assert [(source.labelled, source.case.label) for source in found.cases] == [(True, 1), (True, 1)]


def test_masks_beside_images_are_no_images_to_a_classifier(tmp_path: Path) -> None:
    pictures(tmp_path / "in", "a.png", "b.png")
    for name in "ab":
        mask = np.zeros((8, 9), np.uint8)
        mask[2:5, 2:5] = 1
        Image.fromarray(mask).save(tmp_path / "in" / f"{name}_mask.png")
    found = read(tmp_path / "in", tmp_path / "out", CLASSIFIER)
    assert [(source.name, source.case.label) for source in found.cases] == [("a", 0), ("b", 0)]
    assert "mask beside an image" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "seed", "said"),
    [
        (CLASSIFIER, 1, ["is in colour, and the model reads grey: converted"]),
        (CLASSIFIER, 0, []),
        (NUCLEI, 0, ["is grey, and the model reads colour: its grey is in each channel"]),
        (NUCLEI, 1, []),
    ],
)
def test_conversions_between_grey_and_colour_are_reported(
    text: str, seed: int, said: list[str], tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.png", seed)
    (case,) = read(tmp_path / "in", tmp_path / "out", text).cases
    assert [note for note in case.entry.notes if "model reads" in note] == said
