"""A slide's windows become one map, without seams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from oncofed.data.slides.canvas import SlideCanvas, as_input
from oncofed.data.spec import DataSpec
from oncofed.tasks.whole_slide.stitching import Stitching
from slide_files import noisy, tiled

pytest.importorskip("tifffile")

CPU = torch.device("cpu")
SIDE, PATCH = 416, 64
DATA = DataSpec(
    dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(PATCH, PATCH), spacing=(0.001, 0.001)
)


def network() -> nn.Module:
    """A network that looks 6 pixels around each, with zeros beyond the window as all have them."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 5, padding=2)).eval()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of tissue up to its edges, whose colours change slowly."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(8 * (x - y))], axis=-1)
    pixels = np.array([190, 90, 160]) + 40 * waves
    return tiled(tmp_path_factory.mktemp("slide") / "slide.tif", noisy(pixels), 1.0)


def _map(slide: Path, overlap: float = 0.5, first: int = 0, mirror: bool = False) -> np.ndarray:
    stitching = Stitching(PATCH, overlap, mirror, lambda logits: logits.softmax(1))
    with SlideCanvas(slide, DATA, PATCH) as canvas:
        parts = list(stitching.blocks(network(), canvas, CPU, first))
        found = np.full((2, canvas.size[1] - first, canvas.size[0]), np.nan, np.float32)
    for block in parts:
        part = found[:, block.y - first :][:, : block.height, block.x : block.x + block.width]
        assert np.isnan(part).all()
        part[:] = 0 if block.values is None else block.values
    assert parts == sorted(parts, key=lambda block: (block.y, block.x))
    assert not np.isnan(found).any()
    return found


def _one_window(slide: Path) -> np.ndarray:
    with SlideCanvas(slide, DATA, PATCH) as small, SlideCanvas(slide, DATA, SIDE) as whole, torch.no_grad():
        output = network()(as_input(whole.read(0, 0), small.scale)[None]).softmax(1)
    return output[0].numpy().swapaxes(1, 2)


def test_windows_together_are_one_window_away_from_its_borders(slide: Path) -> None:
    stitched, whole = _map(slide), _one_window(slide)
    assert stitched.shape == whole.shape == (2, SIDE, SIDE)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert np.abs(stitched - whole)[inner].max() < 0.02
    assert np.abs(stitched - whole)[inner].mean() < 5e-4
    # By far not as near without overlap, whose borders the network sees.
    assert np.abs(_map(slide, overlap=0.0) - whole)[inner].max() > 0.05


def test_there_is_no_step_where_windows_begin_and_end(slide: Path) -> None:
    def steps(values: np.ndarray, at: list[int]) -> tuple[float, float]:
        across = np.abs(np.diff(values[1, 8:-8], axis=1)).mean(axis=0)
        borders = [n - 1 for n in at if 8 < n < SIDE - 8]
        return float(across[borders].max()), float(np.median(across))

    at_border, elsewhere = steps(_map(slide), list(range(0, SIDE, PATCH // 2)))
    assert at_border < 1.3 * elsewhere
    cut, elsewhere = steps(_map(slide, overlap=0.0), list(range(0, SIDE, PATCH)))
    assert cut > 1.3 * elsewhere


def test_a_later_row_comes_out_as_if_all_had_been_made(slide: Path) -> None:
    whole = _map(slide, overlap=0.25)
    for first in (1, 48, 200, SIDE - 1):
        assert np.array_equal(_map(slide, overlap=0.25, first=first), whole[:, first:])


def test_mirrorings_are_averaged(slide: Path) -> None:
    mirrored, plain = _map(slide, mirror=True), _map(slide)
    assert not np.allclose(mirrored, plain, atol=1e-3)
    assert np.allclose(mirrored.sum(axis=0), 1, atol=1e-5)


def test_a_slide_smaller_than_a_window_is_seen_whole(tmp_path: Path) -> None:
    path = tiled(tmp_path / "small.tif", noisy(np.full((40, 30, 3), (190, 90, 160))), 1.0)
    assert _map(path).shape == (2, 40, 30)


def test_glass_is_not_looked_at(tmp_path: Path) -> None:
    pixels = np.full((300, 300, 3), 245)
    pixels[:100, :100] = (190, 90, 160)
    path = tiled(tmp_path / "glass.tif", noisy(pixels), 1.0)
    found = _map(path, overlap=0.0)
    assert found[:, :100, :100].all()
    assert not found[:, 200:, 200:].any()
