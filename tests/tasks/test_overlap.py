"""Counting all classes in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from oncofed.tasks import overlap
from oncofed.tasks.overlap import bounding_box, confusion, dice

_SHAPES = array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)


@given(st.data(), _SHAPES, st.sampled_from([None, 7]))
@pytest.mark.parametrize("count", ["_count", "_count_on_device"])
def test_every_voxel_counts_once(count: str, data: st.DataObject, shape: tuple[int, ...], ignore: int | None) -> None:
    prediction = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 2)))
    reference = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 1, 2, 7, 9])))
    flat = torch.from_numpy(prediction).flatten(), torch.from_numpy(reference).flatten()
    found = getattr(overlap, count)(*flat, 3, ignore).reshape(4, 3)
    kept = np.ones(shape, bool) if ignore is None else reference != ignore
    rows = np.minimum(reference, 3)
    expected = [[int(((rows == r) & (prediction == p) & kept).sum()) for p in range(3)] for r in range(4)]
    assert found.tolist() == expected
    whole = confusion(torch.from_numpy(prediction), torch.from_numpy(reference), 3, ignore)
    assert whole.tolist() == expected
    for values in ((1,), (2,), (1, 2)):
        p, r = np.isin(prediction, values) & kept, np.isin(reference, values) & kept
        size = int(p.sum()) + int(r.sum())
        assert dice(whole, values) == pytest.approx(2 * int((p & r).sum()) / size if size else np.nan, nan_ok=True)


def test_labels_of_many_classes_and_parts_of_a_volume_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    prediction, reference = (rng.integers(0, 300, (20, 30, 7)).astype(np.int16) for _ in range(2))
    monkeypatch.setattr(overlap, "_VOXELS_AT_ONCE", 1000)
    counts = confusion(torch.from_numpy(prediction), torch.from_numpy(reference), 300)
    assert counts.sum() == prediction.size
    assert counts[17, 4] == ((reference == 17) & (prediction == 4)).sum()


@given(arrays(np.bool_, _SHAPES, elements=st.sampled_from([False, False, True])))
def test_the_bounding_box_is_the_smallest(mask: np.ndarray) -> None:
    box = bounding_box(mask)
    if box is None:
        assert not mask.any()
        return
    assert mask[box].sum() == mask.sum()
    places = np.argwhere(mask)
    assert [(s.start, s.stop) for s in box] == [
        (low, high + 1) for low, high in zip(places.min(0), places.max(0), strict=True)
    ]
