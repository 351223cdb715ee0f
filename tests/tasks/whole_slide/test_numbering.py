"""Objects that blocks and strips cut are counted once."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data.inputs import object_distances
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.spec import DataSpec
from oncofed.tasks import slide_strips
from oncofed.tasks.objects import separate
from oncofed.tasks.slide_strips import SlideObjectMap
from oncofed.tasks.whole_slide import numbering
from oncofed.tasks.whole_slide.labelling import labelled
from oncofed.tasks.whole_slide.numbering import numbered
from oncofed.tasks.whole_slide.stitching import Stitching
from oncofed.tasks.whole_slide.store import StripStore
from slide_files import noisy, tiled

pytest.importorskip("tifffile")

CPU = torch.device("cpu")
SIDE = 400
DATA = DataSpec(
    dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(64, 64), spacing=(0.001, 0.001)
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of 64 rows and blocks of 96 columns, with a context of 24 pixels."""
    monkeypatch.setattr(slide_strips, "STRIP_ROWS", 64)
    monkeypatch.setattr(numbering, "BLOCK", 96)
    monkeypatch.setattr(numbering, "CONTEXT", 24)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Numbers of discs, and of a bar that is longer than any block with its context."""
    rng = np.random.default_rng(0)
    numbers = np.zeros((SIDE, SIDE), np.int64)
    numbers[30:370, 195:203] = 1
    y, x = np.mgrid[-12:13, -12:13]
    for _ in range(900):
        row, column, radius = rng.integers(12, SIDE - 12), rng.integers(12, SIDE - 12), rng.uniform(4, 8)
        around = numbers[row - 12 : row + 13, column - 12 : column + 13]
        if not around[np.hypot(x, y) < radius + 3].any():
            around[np.hypot(x, y) < radius] = numbers.max() + 1
    return numbers


class Oracle(nn.Module):
    """Knows what the slide shows: the green channel is a kind, the blue one the depth."""

    def forward(self, image: Tensor) -> Tensor:
        return image


class Marked(SlideCanvas):
    """A slide whose pixels are the truth itself."""

    @property
    def scale(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return torch.zeros(3, 1, 1), torch.full((3, 1, 1), 255.0)


@pytest.fixture
def canvas(tmp_path: Path, truth: np.ndarray) -> Iterator[SlideCanvas]:
    kinds = np.where(truth > 0, 1 + truth % 2, 0)
    depth = object_distances(truth)
    pixels = np.stack([kinds == 1, kinds == 2, depth], axis=-1) * 250
    pixels = np.where((truth > 0)[..., None], pixels, 0) + np.array([3, 0, 0])
    with Marked(tiled(tmp_path / "slide.tif", pixels.astype(np.uint8), 1.0), DATA, 64) as opened:
        opened.__dict__["tissue"] = np.ones(opened.overview[0].shape[:2], bool)
        yield opened


def _found(canvas: SlideCanvas, store: StripStore = numbering.NOTHING_KEPT) -> SlideObjectMap:
    def maps(image: Tensor) -> Tensor:
        return torch.cat([1 - image[:, :1] - image[:, 1:2], image], dim=1)

    def apart(inside: np.ndarray, depth: np.ndarray) -> np.ndarray:
        return separate(inside, depth, 0.4, 10)

    return numbered(Stitching(64, 0.25, False, maps), apart, Oracle(), canvas, CPU, store)


def _numbers(found: SlideObjectMap) -> np.ndarray:
    return np.concatenate([strip.values for strip in found.strips])


def _pairs(one: np.ndarray, other: np.ndarray) -> int:
    assert np.array_equal(one > 0, other > 0)
    return np.unique(np.stack([one[one > 0], other[one > 0]]), axis=1).shape[1]


@pytest.mark.usefixtures("small_blocks")
def test_an_object_has_one_number_wherever_it_is_cut(canvas: SlideCanvas, truth: np.ndarray) -> None:
    found = _found(canvas)
    assert len(found.strips) == 7
    numbers = _numbers(found)
    count = len(np.unique(truth)) - 1
    assert count > 200
    assert len(np.unique(numbers)) - 1 == count
    assert _pairs(numbers, truth) == count
    assert [found.classes[numbers[truth == n][0]] for n in range(1, count + 1)] == [
        1 + n % 2 for n in range(1, count + 1)
    ]


@pytest.mark.usefixtures("small_blocks")
def test_a_broken_prediction_goes_on_to_the_same_objects(
    canvas: SlideCanvas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _found(canvas)
    asked: list[int] = []
    read = canvas.read

    def breaking(x: int, y: int) -> np.ndarray:
        asked.append(y)
        if y > 230:
            raise OSError("the drive is gone")
        return read(x, y)

    monkeypatch.setattr(canvas, "read", breaking)
    store = StripStore(tmp_path / "strips")
    with pytest.raises(OSError, match="gone"):
        _found(canvas, store)
    kept = len(list((tmp_path / "strips").iterdir()))
    assert 0 < kept < len(whole.strips)
    monkeypatch.setattr(canvas, "read", lambda x, y: (asked.append(y), read(x, y))[1])
    asked.clear()
    resumed = _found(canvas, store)
    assert min(asked) > 64 * kept - 64 - 24
    assert np.array_equal(_numbers(resumed), _numbers(whole))
    assert np.array_equal(resumed.classes, whole.classes)
    asked.clear()
    assert np.array_equal(_numbers(_found(canvas, store)), _numbers(whole))
    assert not asked


@pytest.mark.usefixtures("small_blocks")
def test_strips_of_another_height_are_made_anew(
    canvas: SlideCanvas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(objects: StripStore, labels: StripStore) -> tuple[np.ndarray, np.ndarray]:
        stitching = Stitching(64, 0.25, False, lambda image: torch.cat([1 - image[:, :1], image[:, :1]], dim=1))
        found = labelled(stitching, Oracle(), canvas, CPU, labels)
        return _numbers(_found(canvas, objects)), np.concatenate([strip.values for strip in found.strips])

    fresh = answers(numbering.NOTHING_KEPT, numbering.NOTHING_KEPT)
    for rows in (32, 128):
        stores = StripStore(tmp_path / f"objects {rows}"), StripStore(tmp_path / f"labels {rows}")
        with monkeypatch.context() as other_build:
            other_build.setattr(slide_strips, "STRIP_ROWS", rows)
            answers(*stores)
        for again, expected in zip(answers(*stores), fresh, strict=True):
            assert np.array_equal(again, expected)


@pytest.mark.usefixtures("small_blocks")
def test_a_strip_that_another_build_kept_is_made_anew_with_those_below(canvas: SlideCanvas, tmp_path: Path) -> None:
    store = StripStore(tmp_path / "strips")
    whole = _found(canvas, store)
    first, second, *below = sorted((tmp_path / "strips").iterdir())
    kept = second.read_bytes()
    for changed in ("heat", "packed", "carried", "votes", "last", ""):
        with np.load(io.BytesIO(kept)) as found:
            arrays = dict(found)
        if changed:
            arrays[changed] = arrays[changed][..., :-1] if arrays[changed].dtype == np.uint8 else np.zeros(3)
        else:
            del arrays["same"]
        np.savez(second, **arrays)
        before = {path: path.stat().st_mtime_ns for path in (first, second, *below)}
        again = _found(canvas, store)
        assert [path for path in before if path.stat().st_mtime_ns == before[path]] == [first]
        assert np.array_equal(_numbers(again), _numbers(whole))
        assert np.array_equal(again.classes, whole.classes)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_parts_that_meet_beyond_any_context_are_one_object(turn: int, tmp_path: Path) -> None:
    """A gland that branches: its arms are seen first, and far apart what joins them."""
    shape = np.zeros((300, 300), bool)
    shape[30:240, 60:72] = shape[30:240, 130:142] = shape[228:240, 60:142] = True
    shape[30:200, 220:232] = True  # by itself
    shape = np.rot90(shape, turn)
    pixels = np.where(shape[..., None], (250, 0, 250), (3, 0, 0)).astype(np.uint8)
    with Marked(tiled(tmp_path / "slide.tif", pixels, 1.0), DATA, 64) as canvas:
        canvas.__dict__["tissue"] = np.ones(canvas.overview[0].shape[:2], bool)
        store = StripStore(tmp_path / "strips")
        found = _found(canvas, store)
        assert np.array_equal(_numbers(found) > 0, shape)
        assert len(np.unique(_numbers(found))) == 3
        assert found.classes.tolist() == [0, 1, 1]
        for path in sorted((tmp_path / "strips").iterdir())[-2:]:
            path.unlink()
        assert np.array_equal(_numbers(_found(canvas, store)), _numbers(found))


def test_noise_alone_has_no_objects(tmp_path: Path) -> None:
    path = tiled(tmp_path / "slide.tif", noisy(np.full((100, 100, 3), (20, 10, 5)), most=1), 1.0)
    with Marked(path, DATA, 64) as canvas:
        found = _found(canvas)
    assert found.classes.tolist() == [0]
    assert not _numbers(found).any()
