"""Batch streams: epochs, class balance, and resumption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from oncofed.data.augment import Batch
from oncofed.data.batches import BatchStream
from oncofed.data.cases import read_cases
from oncofed.data.inputs import Patches, Prepared, object_distances
from oncofed.data.prepared import PreparedCases
from oncofed.data.spatial import Moves
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.errors import TrainingError, UnreadableError

CPU = torch.device("cpu")
DATA = DataSpec(dataset="balls", patch=(8, 8, 8))


def _batches(site: Path, size: int = 2, seed: int = 1, data: DataSpec = DATA) -> BatchStream:
    patches = Patches(data, "light", 3)
    train = read_cases(site, SplitSpec(), 1).train
    return BatchStream(PreparedCases(train, patches, CPU), patches, size, seed, CPU)


def test_batches_have_shape_and_type(site: Path) -> None:
    batch = next(_batches(site, 3))
    assert batch["image"].shape == batch["label"].shape == (3, 1, 8, 8, 8)
    assert (batch["image"].dtype, batch["label"].dtype) == (torch.float32, torch.uint8)


def test_every_case_comes_once_before_any_comes_twice(site: Path) -> None:
    stream = _batches(site, 3)
    cases = len(stream._builder.prepared)
    drawn = [index for _ in range(cases) for index in stream._indices()]
    for start in range(0, len(drawn), cases):
        assert sorted(drawn[start : start + cases]) == list(range(cases))


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_stream_resumes_from_its_state(site: Path, before: int) -> None:
    first = _batches(site)
    for _ in range(before):
        next(first)
    state = first.state()
    expected = [next(first) for _ in range(4)]
    second = _batches(site, seed=99)
    second.restore(state)
    for one in expected:
        other = next(second)
        assert all(torch.equal(values, other[name]) for name, values in one.items())


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_batch_is_drawn_again_identically_after_full_memory(
    site: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    whole, short = _batches(site), _batches(site)
    change = short._builder._input.change
    left = [0]

    def full(batch: Batch, generator: torch.Generator) -> Batch:
        changed = change(batch, generator)
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return changed

    monkeypatch.setattr(short._builder._input, "change", full)
    for number in range(6):
        left[0] = failures if number == 2 else 0
        expected = next(whole)
        if left[0] == 3:
            with pytest.raises(TrainingError, match="a batch alone does not fit"):
                next(short)
            left[0] = 0
        found = next(short)
        assert all(torch.equal(values, found[name]) for name, values in expected.items())
    assert torch.equal(whole.state()["generator"], short.state()["generator"])


def test_other_errors_in_a_batch_are_not_taken_for_full_memory(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _batches(site)

    def broken(batch: Batch, generator: torch.Generator) -> Batch:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(stream._builder._input, "change", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        next(stream)


def test_a_temporary_read_error_loses_no_batch(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [next(stream) for stream in [_batches(site)] for _ in range(4)]
    stream = _batches(site)
    found = [next(stream)]
    draw = Patches.draw

    def broken(self: Patches, prepared: Prepared, generator: torch.Generator) -> Prepared:
        torch.rand(3, generator=generator)
        raise UnreadableError("a drive is away")

    monkeypatch.setattr(Patches, "draw", broken)
    for _ in range(2):
        with pytest.raises(UnreadableError):
            next(stream)
    monkeypatch.setattr(Patches, "draw", draw)
    found += [next(stream) for _ in range(3)]
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(values, other[name]) for name, values in one.items())


def test_each_class_is_equally_often_at_the_centre(site: Path) -> None:
    patches = Patches(DATA.model_copy(update={"patch": (9, 9, 9)}), "none", 3)
    prepared = patches.prepare(read_cases(site, SplitSpec(), 1).train[0])
    # Away from the border the drawn voxel is the patch's own centre.
    generator = torch.Generator().manual_seed(1)
    centres = [int(patches.draw(prepared, generator)["label"][0, 4, 4, 4]) for _ in range(600)]
    counts = Counter(centres)
    assert counts[2] > 150
    assert counts[1] > 100
    assert counts[0] > 60


def test_a_class_missing_from_a_case_is_skipped(site: Path) -> None:
    patches = Patches(DATA, "none", 5)
    prepared = patches.prepare(read_cases(site, SplitSpec(), 1).train[0])
    assert len(prepared["centres.4"]) == 0
    assert patches.draw(prepared, torch.Generator())["image"].shape == (1, 8, 8, 8)


def test_distances_are_deepest_in_the_middle_of_each_object() -> None:
    numbers = np.zeros((20, 20), np.int32)
    numbers[2:9, 2:9], numbers[2:9, 9:14] = 3, 7  # they touch
    depth = object_distances(numbers)
    assert depth[5, 5] == depth[5, 11] == 1
    assert depth[5, 8] < 0.5
    assert depth[5, 9] < 0.5
    assert (depth[numbers == 0] == 0).all()


def test_a_patch_of_an_unlabelled_image_says_nothing_of_what_lies_beyond_it() -> None:
    patches = Patches(DATA, "full", 3)
    patches._moves = Moves((1.0, 0.5), (1.0, 2.0, 2.0), 0.0)  # far beyond
    generator = torch.Generator().manual_seed(1)
    unlabelled = patches.of_unlabelled(torch.ones(1, 8, 8, 8), 255)
    assert set(patches.draw(unlabelled, generator)["label"].unique().tolist()) == {255}
    labelled = {**unlabelled, "label": torch.ones(1, 8, 8, 8, dtype=torch.uint8)}
    del labelled["outside"]
    assert set(patches.draw(labelled, generator)["label"].unique().tolist()) == {0, 1}
