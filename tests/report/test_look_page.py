"""The page of cases.

Directions from the affine, true proportions, scale bars of the stated length, no external resources.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from commands import Outcome
from oncofed.data.case import Case, case_of
from oncofed.data.look import look
from oncofed.data.manifest import read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.report.look import write_look_page
from oncofed.report.planes import Drawing, Plane, _planes, draw, svg
from oncofed.report.slide_views import view_of
from synthetic import make_nuclei, make_site, make_slides

AXES = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*order)
]
STEPS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def stored(axes: str, sizes: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume and its affine with these axes.

    Voxel values: middle 1, rightmost 2, foremost 3, topmost 4.
    """
    shape = (7, 9, 11)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, letter in enumerate(axes):
        row, sign = STEPS[letter]
        affine[row, column] = sign * sizes[column]
    values = np.zeros(shape, np.uint8)
    middle = np.array([n // 2 for n in shape])
    values[tuple(middle)] = 1
    for world, value in enumerate((2, 3, 4)):
        column = next(c for c, letter in enumerate(axes) if STEPS[letter][0] == world)
        at = middle.copy()
        at[column] = shape[column] - 1 if STEPS[axes[column]][1] > 0 else 0
        values[tuple(at)] = value
    return values, affine


@pytest.mark.wild("standard: NIfTI-1 sform", "which side of a picture is the patient's right")
@settings(deadline=None, max_examples=25)
@given(axes=st.sampled_from(AXES), sizes=st.tuples(*[st.floats(0.3, 6)] * 3))
def test_letters_and_proportions_follow_the_affine(
    tmp_path_factory: pytest.TempPathFactory, axes: str, sizes: tuple[float, float, float]
) -> None:
    folder = tmp_path_factory.mktemp("axes")
    values, affine = stored(axes, sizes)
    nib.save(nib.Nifti1Image(values, affine), folder / "a.nii")
    # The label is the middle voxel alone, so that all planes go through it.
    nib.save(nib.Nifti1Image((values == 1).astype(np.uint8), affine), folder / "l.nii")
    planes, note = _planes(Drawing(Case("a", "a", folder / "a.nii", folder / "l.nii")))
    assert note == ""
    extent = {STEPS[letter][0]: n * s for letter, n, s in zip(axes, values.shape, sizes, strict=True)}
    for plane, (across, down) in zip(planes, ((0, 1), (0, 2), (1, 2)), strict=True):
        assert plane.size == pytest.approx((extent[across], extent[down]), rel=1e-5)
        # One voxel that is not dark lies at the right end of its plane, one at the front, one on top.
        where = dict(zip("LRTB", plane.ends, strict=True))
        rows, columns = plane.pixels.shape
        seen = {
            "L": plane.pixels[rows // 2, 0],
            "R": plane.pixels[rows // 2, -1],
            "T": plane.pixels[0, columns // 2],
            "B": plane.pixels[-1, columns // 2],
        }
        for side, letter in (("L", "R" if across == 0 else "A"), ("T", "A" if down == 1 else "S")):
            assert where[side] == letter
            assert seen[side] > 0
        assert where["R"] == ("L" if across == 0 else "P")
        assert seen["R"] == seen["B"] == 0
        shown = re.search(r'width="([\d.]+)" height="([\d.]+)" preserve', svg(plane, "a"))
        assert shown is not None
        assert float(shown[1]) / float(shown[2]) == pytest.approx(extent[across] / extent[down], rel=0.02)


@settings(deadline=None, max_examples=30)
@given(width=st.floats(0.02, 3000), ratio=st.floats(0.2, 4))
def test_a_scale_bar_has_its_stated_length(width: float, ratio: float) -> None:
    plane = Plane("", np.zeros((20, 20), np.uint8), None, (width, width * ratio))
    text = str(svg(plane, "a"))
    number, unit = re.search(r">([\d.e+]+) (mm|µm)</text>", text).groups()  # type: ignore[union-attr]
    length = float(number) * (1 if unit == "mm" else 1e-3)
    drawn = float(re.search(r"v4h([\d.]+)v-4", text)[1])  # type: ignore[index]
    whole = float(re.search(r'width="([\d.]+)" height', text)[1])  # type: ignore[index]
    assert drawn / whole == pytest.approx(length / width, rel=0.02)
    assert length <= 0.31 * width


def test_a_picture_of_unknown_size_has_no_bar_and_one_without_directions_no_letter() -> None:
    text = str(svg(Plane("", np.zeros((4, 4), np.uint8), None, (4, 4), calibrated=False), "a"))
    assert "<text" not in text


def test_a_contour_lies_around_its_pixels() -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[2:5, 6:16] = 3
    text = str(svg(Plane("", np.zeros((10, 20), np.uint8), labels, (20, 10)), "<a&b>"))
    points = np.array(re.search(r'class="contour"[^>]* d="M([^Z]+)Z"', text)[1].replace("L", " ").split(), float)  # type: ignore[index]
    x, y = points.reshape(-1, 2).T * 20 / 480
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((6, 16, 2, 5), abs=0.01)
    assert "&lt;a&amp;b&gt;" in text


def test_small_labels_survive_downsampling_of_large_planes(tmp_path: Path) -> None:
    image, label = np.zeros((1500, 1500), np.uint8), np.zeros((1500, 1500), np.uint8)
    label[701, 333] = 2
    Image.fromarray(image + 9).save(tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "l.png")
    drawn = draw(Drawing(Case("a", "a", tmp_path / "a.png", tmp_path / "l.png")))
    assert drawn.values == (2,)
    assert 'class="contour"' in drawn.pictures[0]
    assert 'class="ring"' in drawn.pictures[0]
    assert len(drawn.pictures[0]) < 100_000


def test_an_unreadable_case_is_shown_with_its_reason(tmp_path: Path) -> None:
    drawn = draw(Drawing(Case("a", "a", tmp_path / "gone.nii.gz", 0)))
    assert drawn.pictures == ()
    assert "is missing" in drawn.problem


def test_slides_show_their_tiles(tmp_path: Path) -> None:
    make_slides(tmp_path / "in", 2, side=1024)
    register(
        RegisterOptions(tmp_path / "in", "slides", tmp_path / "set", task="slides", tiles=TileSpec(128, 1.0), workers=1)
    )
    found = look(tmp_path / "set", workers=1)
    view = view_of(case_of(tmp_path / "set", read_manifest(tmp_path / "set"), found.shown[0].entry))
    assert view.size == pytest.approx((1.024, 1.024), rel=1e-3)
    assert view.tiles[0][2] / view.pixels.shape[1] == pytest.approx(128 / 1024, rel=0.02)
    page = write_look_page(found, tmp_path / "set", tmp_path / "look.html", workers=1)
    text = page.read_text(encoding="utf-8")
    assert text.count('class="tiles"') == 2
    assert "µm" in text


def test_the_page_is_self_contained_and_runs_no_script(tmp_path: Path) -> None:
    source = make_site(tmp_path / "in")
    register(
        RegisterOptions(
            source, "balls", tmp_path / "set", labels={0: "background", 1: "a<b>shell", 2: "core"}, workers=1
        )
    )
    found = look(tmp_path / "set", workers=1)
    text = write_look_page(found, tmp_path / "set", tmp_path / "look.html", workers=1).read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:" in text
    assert not re.search(r"<script|https?://|url\(|@import|<link|\son\w+=", text)
    assert "a&lt;b&gt;shell" in text
    assert text.count('aria-label="axial plane') == len(found.shown) == 6
    assert "20 × 20 × 20 voxels, 1 × 1 × 1 mm, RAS" in text
    assert str(tmp_path) not in text


def test_the_command(run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCOFED_WORKSPACE", str(tmp_path / "workspace"))
    source = make_nuclei(tmp_path / "in")
    path = source / "masks" / "f2.png"
    Image.fromarray(np.asarray(Image.open(path))[:, ::-1]).save(path)
    run("data", "register", source, "--dataset", "nuclei")
    shown = run("data", "look", "nuclei", "--cases", "4", "--out", tmp_path / "page")
    assert shown.status == 0
    assert "label and image compared in 12 of the 12 with a mask" in shown.text
    assert "suspicious f2: mirrored left to right" in shown.text
    assert (tmp_path / "page" / "look.html").is_file()
    values = json.loads(run("data", "look", "nuclei", "--json").output)
    assert values["suspicious"][0]["case"] == "f2"
    assert values["page"] == str(tmp_path / "workspace" / "datasets" / "nuclei" / "look.html")
