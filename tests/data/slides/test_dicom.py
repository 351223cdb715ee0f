"""DICOM slides: one pyramid is one slide.

Levels may be in any series; labels and overviews are named as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from dicoms import make_wsi
from oncofed.data.dicom.header_types import SlideHeader
from oncofed.data.dicom.stacks import SlideFile
from oncofed.data.dicom.whole_slides import whole_slides
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileReader, TileSpec, open_slide
from oncofed.errors import DataError
from slide_files import halved, stained

STUDY, FRAME = generate_uid(), generate_uid()
ONE_SLIDE = {"StudyInstanceUID": STUDY, "FrameOfReferenceUID": FRAME, "ContainerIdentifier": "S1"}
PIXELS = stained(1024, 1280)

_UNSAID = [
    "sop_class",
    "instance",
    "modality",
    "vendor",
    "body_part",
    "description",
    "photometric",
    "burned_in",
    "syntax",
]


def instance(folder: Path, pixels: np.ndarray, mpp: float = 0.5, tile: int = 256, **changes: Any) -> Path:
    path = make_wsi(folder, pixels, mpp, tile)
    dataset = pydicom.dcmread(path)
    for keyword, value in {**ONE_SLIDE, **changes}.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def of_type(kind: str) -> dict[str, Any]:
    return {"ImageType": ["ORIGINAL", "PRIMARY", kind, "NONE"]}


def registered(tmp_path: Path) -> Manifest:
    return register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", tiles=TileSpec(128, 0.5)))


@pytest.mark.wild("openslide#511", "a pyramid whose levels are series of their own")
@pytest.mark.parametrize(
    "changes", [{}, {"ContainerIdentifier": ""}, {"FrameOfReferenceUID": ""}], ids=["both", "frame", "container"]
)
def test_levels_in_separate_series_are_one_slide(tmp_path: Path, changes: dict[str, Any]) -> None:
    instance(tmp_path / "in", halved(halved(PIXELS)), 2.0, tile=128, **changes)  # its tiles are smaller, too
    instance(tmp_path / "in", PIXELS, **changes)
    instance(tmp_path / "in", halved(PIXELS), 1.0, **changes)
    manifest = registered(tmp_path)
    assert not manifest.quarantine
    assert [entry.shape for entry in manifest.entries] == [[1280, 1024]]
    assert manifest.files == {"image": 3}
    slide = open_slide(tmp_path / "out" / manifest.entries[0].images[0])
    assert [(level.width, round(level.mpp, 3)) for level in slide.levels] == [(1280, 0.5), (640, 1.0), (320, 2.0)]
    np.testing.assert_array_equal(slide.read(1, 100, 100, 300, 200), halved(PIXELS)[100:300, 100:400])
    slide.close()


@pytest.mark.wild("openslide#511", "two scans of one slide joined into one")
@pytest.mark.parametrize(
    "changes",
    [
        {},  # scanned twice: the same size
        {"PatientID": "other"},
        {"FrameOfReferenceUID": generate_uid()},
        {"ContainerIdentifier": "S2"},
        {"StudyInstanceUID": generate_uid()},
    ],
    ids=["again", "patient", "frame", "container", "study"],
)
def test_other_scans_and_other_slides_stay_apart(tmp_path: Path, changes: dict[str, Any]) -> None:
    instance(tmp_path / "in", PIXELS)
    instance(tmp_path / "in", halved(PIXELS) if changes else PIXELS[::-1].copy(), 1.0 if changes else 0.5, **changes)
    manifest = registered(tmp_path)
    assert len(manifest.entries) + len(manifest.quarantine) == 2


def test_another_area_of_the_glass_is_not_a_level(tmp_path: Path) -> None:
    instance(tmp_path / "in", PIXELS)
    instance(tmp_path / "in", stained(512, 640))  # as many pixels as a level would have, of half the size in mm
    assert len(registered(tmp_path).entries) == 2


@pytest.mark.wild("openslide#137", "label, overview and thumbnail of a slide")
@pytest.mark.parametrize("series", ["own", "shared"])
def test_images_outside_the_pyramid_are_left_out_by_name(tmp_path: Path, series: str) -> None:
    uid = {"SeriesInstanceUID": generate_uid()} if series == "shared" else {}
    instance(tmp_path / "in", PIXELS, **uid)
    for kind in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        instance(tmp_path / "in", stained(256, 256), **uid, **of_type(kind))
    manifest = registered(tmp_path)
    assert len(manifest.entries) == 1
    assert manifest.files == {"image": 1, "left out": 3}
    assert [reason.split(" of a DICOM slide")[0] for reason in sorted(manifest.left_out)] == [
        "label",
        "overview",
        "thumbnail",
    ]
    assert len(list((tmp_path / "out" / manifest.entries[0].images[0]).iterdir())) == 1


@pytest.mark.wild("openslide#137", "a label or overview alone")
@pytest.mark.parametrize("kind", ["LABEL", "OVERVIEW"])
def test_a_label_alone_is_named_as_such(tmp_path: Path, kind: str) -> None:
    instance(tmp_path / "in", stained(256, 256), **of_type(kind))
    manifest = registered(tmp_path)
    assert [case.reason for case in manifest.quarantine] == [
        f"holds no level of a slide's pyramid: found 1 {kind} (ImageType), expected VOLUME. Add the slide's files"
    ]


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)), st.integers(1, 3))
def test_grouping_does_not_depend_on_file_order(order: list[int], slides: int) -> None:
    headers = []
    for number in range(6):
        level, slide = number // slides, number % slides
        width, height = 4096 >> level, 3000 >> level
        headers.append(
            SlideHeader(
                **dict.fromkeys(_UNSAID, ""),
                patient="P",
                study="1",
                series=f"1.{number}",
                frame_of_reference=f"2.{slide}",
                container=f"S{slide}",
                image_type=["DERIVED", "PRIMARY", "VOLUME"],
                matrix=[width, height],
                imaged_mm=[2.0, 1.5],
            )
        )
    found, left_out = whole_slides({f"1.{n}": [SlideFile(f"{n}.dcm", headers[n])] for n in order})
    assert not left_out
    expected = {frozenset(f"{n}.dcm" for n in range(6) if n % slides == slide) for slide in range(slides)}
    assert {frozenset(item.path for item in slide.instances) for slide in found} == expected
    assert {slide.series for slide in found} == {f"1.{slide}" for slide in range(slides)}


@pytest.mark.wild("openslide#137", "a DICOM slide that is damaged")
def test_damaged_files_are_refused_in_words(tmp_path: Path) -> None:
    path = instance(tmp_path / "cut", PIXELS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"is damaged: a frame"), TileReader(tmp_path / "cut", TileSpec(256)) as tiles:
        tiles.overview()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.dcm").write_bytes(b"no slide")
    with pytest.raises(DataError, match="holds 1 files, none of which is a DICOM slide"):
        open_slide(tmp_path / "none")
    path = instance(tmp_path / "sizeless", PIXELS)
    dataset = pydicom.dcmread(path)
    del dataset.TotalPixelMatrixRows
    dataset.save_as(path)
    with pytest.raises(DataError, match="does not say how large it is"):
        open_slide(tmp_path / "sizeless")
