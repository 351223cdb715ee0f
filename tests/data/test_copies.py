"""The search for copies misses none."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oncofed.data.case_facts import thumbnail_values
from oncofed.data.copies import copy_groups
from oncofed.data.decisions import contradiction
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.register import RegisterOptions, register


def _manifest(thumbnails: Sequence[np.ndarray], **changes: Sequence[object]) -> Manifest:
    entries = [
        Entry.model_validate(
            {
                "image": f"{number}.png",
                "name": f"i{number}",
                "patient": f"p{number}",
                "thumbnail": base64.b64encode(values.astype(np.uint8).tobytes()).decode(),
                **{key: column[number] for key, column in changes.items()},
            }
        )
        for number, values in enumerate(thumbnails)
    ]
    return Manifest(training=entries)


def _by_all_pairs(manifest: Manifest) -> set[frozenset[str]]:
    """Return groups of names, from comparing all pairs."""
    groups: list[set[str]] = []
    cases = [(entry, thumbnail_values(entry)) for entry in manifest.entries]
    for place, (one, a) in enumerate(cases):
        for two, b in cases[place + 1 :]:
            if a is None or b is None or one.patient == two.patient or float(a @ b) <= 0.998:
                continue
            pair = {str(one.name), str(two.name)}
            joined = [group for group in groups if group & pair]
            groups = [group for group in groups if not group & pair] + [pair.union(*joined)]
    return {frozenset(group) for group in groups}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    kinds=st.integers(1, 5),
    noise=st.sampled_from([1.0, 3.0, 6.0, 9.0, 40.0]),
    patients=st.integers(1, 60),
)
def test_groups_equal_those_from_all_pairs(seed: int, kinds: int, noise: float, patients: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(20, 235, (kinds, 256))
    thumbnails = [(base[n % kinds] + rng.normal(0, noise, 256)).clip(0, 255) for n in range(60)]
    manifest = _manifest(thumbnails, patient=[f"p{n % patients}" for n in range(60)])
    values = np.array([thumbnail_values(entry) for entry in manifest.entries], dtype=float)
    assume(np.abs(values @ values.T - 0.998).min() > 1e-6)  # where rounding decides, either is right
    found = {frozenset(str(e.name) for _, e in group.cases) for group in copy_groups(manifest)}
    assert found == _by_all_pairs(manifest)


def test_a_chain_of_copies_is_one_group_with_named_originals() -> None:
    rng = np.random.default_rng(0)
    first, step = rng.normal(0, 40, 256), rng.normal(0, 1, 256)
    step *= np.linalg.norm(first) / np.linalg.norm(step) * 0.05
    manifest = _manifest([(first + step * n) * 0.8 + 128 for n in (0, 2, 1)])
    values = [thumbnail_values(entry) for entry in manifest.entries]
    assert float(values[0] @ values[1]) < 0.998 < float(values[0] @ values[2])  # type: ignore[operator]
    [group] = copy_groups(manifest)
    assert [e.name for _, e in group.cases] == ["i0", "i1", "i2"]
    assert [copy.of for copy in group.copies] == [-1, 2, 0]
    assert not group.exact


def test_identical_files_of_one_patient_are_copies() -> None:
    rng = np.random.default_rng(0)
    thumbnails = list(rng.integers(0, 255, (4, 256)))
    checksums = ["a" * 64, "b" * 64, "a" * 64, "c" * 64]
    [group] = copy_groups(_manifest(thumbnails, checksum=checksums, patient=["p", "p", "p", "q"]))
    assert group.exact
    assert [e.name for _, e in group.cases] == ["i0", "i2"]


@pytest.mark.parametrize(
    ("labels", "contradict"),
    [((1, 1), False), ((1, 2), True), ((1, None), False), ((None, None), False), (("m.nii", 1), False)],
)
def test_contradicting_labels(labels: tuple[object, object], contradict: bool) -> None:
    values = np.random.default_rng(0).integers(0, 255, 256)
    [group] = copy_groups(_manifest([values, values], label=labels))
    assert bool(group.contradiction()) == contradict


def test_masks_of_copies_with_different_voxel_counts_contradict() -> None:
    values = np.random.default_rng(0).integers(0, 255, 256)
    for counts, contradict in (({"0": 90, "1": 10}, False), ({"0": 80, "1": 20}, True)):
        facts = {"label": ["a", "b"], "shape": [[10, 10]] * 2, "label_values": [{"0": 90, "1": 10}, counts]}
        [group] = copy_groups(_manifest([values, values], **facts))
        assert bool(group.contradiction()) == contradict


def test_masks_of_copies_contradict_if_one_is_mirrored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(12, 12, 12)).astype(np.float32), np.zeros((12, 12, 12), np.uint8)
    mask[2:5, 3:8, 3:8] = 1
    many = mask * np.arange(300, 312, dtype=np.uint16)  # values of more than a byte
    kinds = (("a", mask, np.uint8), ("b", mask[::-1], np.uint8), ("c", mask, np.float32), ("d", many, np.uint16))
    for name, values, kind in kinds:
        for folder, array in (("imagesTr", image), ("labelsTr", values.astype(kind))):
            (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "in" / folder / f"{name}.nii")
    entries = {e.name: e for e in register(RegisterOptions(tmp_path / "in", "n", tmp_path / "out")).entries}
    assert contradiction([entries["a"], entries["b"]])
    assert not contradiction([entries["a"], entries["c"]])
    assert len({e.label_digest for e in entries.values()}) == 3


@pytest.mark.wild("MedNIST", "thousands of images of one look: as many pairs as there are images squared")
def test_many_similar_images_are_one_group() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(60, 190, 256)
    thumbnails = [base + rng.normal(0, 0.6, 256) for _ in range(3000)]
    [group] = copy_groups(_manifest(thumbnails))
    assert len(group.cases) == 3000
    assert all(copy.of < place or copy.of >= 0 for place, copy in enumerate(group.copies) if place)
