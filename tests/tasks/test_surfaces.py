"""Surface figures: as in MONAI, and for missing classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from oncofed.tasks.surfaces import surface_figures

_CLASSES = {1: "shell", 2: "core"}
_STRUCTURES = {name: (value,) for value, name in _CLASSES.items()}


def _blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return np.digitize(values, np.quantile(values, [0.6, 0.85])).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.booleans())
def test_figures_equal_monais(seed: int, dimensions: int, at_a_voxel: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(4, 20, dimensions))
    prediction, reference = _blobs(rng, shape), _blobs(rng, shape)
    spacing = rng.uniform(0.5, 3, dimensions).tolist()
    # A tolerance of one voxel, which many distances equal.
    tolerance = spacing[0] if at_a_voxel else float(rng.uniform(0.3, 4))
    figures = surface_figures(prediction, reference, _STRUCTURES, spacing, tolerance)
    for value, name in _CLASSES.items():
        masks = [torch.from_numpy(labels == value)[None, None] for labels in (prediction, reference)]
        same = {"include_background": True, "spacing": spacing}
        expected = float(compute_surface_dice(*masks, [tolerance], **same))
        assert figures[f"surface_dice.{name}"] == pytest.approx(expected, abs=1e-6)
        expected = float(compute_hausdorff_distance(*masks, percentile=95, **same))
        assert figures[f"hd95_mm.{name}"] == pytest.approx(expected, rel=1e-6)


def test_a_class_that_is_missing_has_no_distance() -> None:
    labels = np.zeros((6, 6), np.uint8)
    labels[2:4, 2:4] = 1
    figures = surface_figures(labels, np.zeros_like(labels), _STRUCTURES, (1, 1), 1.0)
    assert figures.keys() == {"surface_dice.shell", "surface_dice.core"}
    assert figures["surface_dice.shell"] == 0
    assert math.isnan(figures["surface_dice.core"])
