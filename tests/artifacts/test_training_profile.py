"""Traits of training images: sites' counts, server's ranges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.artifacts.training_profile import (
    PROFILE_FILE,
    bins_of,
    combined_profile,
    read_training_profile,
    site_profile,
    write_training_profile,
)
from oncofed.data.manifest import Entry, Intensity
from oncofed.data.spec import DataSpec
from oncofed.data.traits import traits, traits_of
from oncofed.errors import SpecError
from oncofed.privacy.outbound import is_profile
from oncofed.privacy.small_counts import merge_small_bins, suppress_small_counts
from oncofed.suppression import LEAST_PATIENTS

DATA = DataSpec(dataset="any")
COLOUR = DataSpec(
    dataset="any", modality="microscopy", channels=("red", "green", "blue"), patch=(32, 32), background="dark"
)


def entry(slices: float = 1.0, side: int = 64, level: float = 100.0, modality: str | None = "MR") -> Entry:
    """Return what registering knows of a volume that nobody labelled."""
    return Entry(
        image="a.nii.gz",
        modality=modality,
        channels=1,
        shape=[side, side, side],
        spacing=[1.0, 1.0, slices],
        orientation="RAS",
        intensity=Intensity(low=level / 10, median=level, high=level * 5, mean=level, std=level),
    )


def patients(count: int, **what: Any) -> list[tuple[str, Entry]]:
    return [(f"p{n} {what}", entry(**what)) for n in range(count)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_small_bins_are_hidden_and_not_derivable_from_the_total(truth: list[int]) -> None:
    counts = np.array(truth, np.int64)
    shown = suppress_small_counts(counts)
    assert all(one in {0, was} for one, was in zip(shown.tolist(), truth, strict=True))
    assert all(one == 0 or one >= LEAST_PATIENTS for one in shown)
    hidden = sum(truth) - int(shown.sum())
    assert hidden == 0 or hidden >= LEAST_PATIENTS or sum(truth) < LEAST_PATIENTS


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12))
def test_small_bins_are_merged_with_their_fuller_neighbour(truth: list[int]) -> None:
    counts = np.array(truth, np.int64)
    found = merge_small_bins(counts)
    assert found.sum() == counts.sum()
    small = (found > 0) & (found < LEAST_PATIENTS)
    assert not (small[1:] & (found[:-1] > 0)).any()
    if (found >= LEAST_PATIENTS).any():
        assert not small.any() or found[small].sum() > 0.2 * counts.sum()
    shown = suppress_small_counts(found)
    assert all(one == 0 or one >= LEAST_PATIENTS for one in (*shown, counts.sum() - shown.sum())) or counts.sum() < 5


def test_few_patients_hide_nothing_of_the_others() -> None:
    assert merge_small_bins(np.array([0, 41, 2, 0, 3, 0])).tolist() == [0, 46, 0, 0, 0, 0]
    assert merge_small_bins(np.array([2, 4, 3])).tolist() == [0, 9, 0]
    assert merge_small_bins(np.array([6, 0, 3])).tolist() == [6, 0, 3], "a third is no exception"
    assert merge_small_bins(np.array([0, 3, 0])).tolist() == [0, 3, 0]
    assert merge_small_bins(np.array([7, 3, 40]), ordered=False).tolist() == [7, 0, 43]
    assert merge_small_bins(np.array([4, 3, 0]), ordered=False).tolist() == [4, 3, 0], "names lie beside no other"


@given(st.lists(st.lists(st.floats(0.3, 12), max_size=40), max_size=4))
def test_every_kept_count_covers_five_or_more(sites: list[list[float]]) -> None:
    told = [site_profile([(str(n), entry(slices=mm)) for n, mm in enumerate(site)], DATA) for site in sites]
    for profile, site in zip(told, sites, strict=True):
        assert is_profile(profile, bins_of(DATA), len(site))
        assert bool(profile) == (len(site) >= LEAST_PATIENTS)
    summed = combined_profile(told, DATA)
    for trait in summed.traits.values():
        assert trait.patients == sum(len(site) for site in sites if len(site) >= LEAST_PATIENTS)
        assert all(count == 0 or count >= LEAST_PATIENTS for count in trait.counts)
        assert sum(trait.counts) <= trait.patients


@pytest.mark.parametrize(("lacking", "told"), [(0, True), (2, False), (4, False), (5, True)])
def test_a_trait_that_few_lack_is_not_reported(lacking: int, told: bool) -> None:
    """Its count would reveal how many lack it."""
    profile = site_profile(patients(30 - lacking) + patients(lacking, modality=None), DATA)
    assert profile["channels"]["patients"] == 30
    assert ("modality" in profile) == told
    assert is_profile(profile, bins_of(DATA), 30)


def test_sites_are_added_up_to_ranges() -> None:
    west = site_profile(patients(12, slices=1.0) + patients(8, slices=1.3), DATA)
    east = site_profile(patients(20, slices=0.9), DATA)
    few = site_profile(patients(4, slices=9.0), DATA)
    assert few == {}
    summed = combined_profile([west, east], DATA)
    spacing = summed.traits["spacing_superior"]
    assert (summed.sites, spacing.patients, sum(spacing.counts)) == (2, 40, 40)
    assert spacing.range == (pytest.approx(0.771, abs=1e-3), pytest.approx(1.542, abs=1e-3))
    assert spacing.unit == "mm"
    assert summed.traits["modality"].names == ("MR",)
    assert "edge" not in summed.traits, "nobody has thumbnails"


def test_a_mostly_hidden_range_is_unknown() -> None:
    spread = [(f"p{n}", entry(slices=2.0 ** (n / 2))) for n in range(-12, 4)]
    summed = combined_profile([site_profile(patients(10) + spread, DATA)], DATA)
    assert summed.traits["spacing_superior"].range is None
    assert summed.traits["spacing_right"].range is not None


def test_one_patient_counts_once_however_many_images_there_are() -> None:
    images = [("one", entry(slices=5.0))] * 40 + patients(6)
    told = site_profile(images, DATA)["spacing_superior"]
    assert told["patients"] == 7
    assert sorted(told["counts"])[-2:] == [0, 7], "one of seven is an exception, and counted with the others"


def test_single_tails_of_a_hundredth_are_left_out() -> None:
    many = combined_profile([site_profile(patients(1000) + patients(9, slices=8.0), DATA)], DATA)
    assert many.traits["spacing_superior"].range == (pytest.approx(0.917, abs=1e-3), pytest.approx(1.0905, abs=1e-3))
    more = combined_profile([site_profile(patients(1000) + patients(30, slices=8.0), DATA)], DATA)
    assert more.traits["spacing_superior"].range == (pytest.approx(0.917, abs=1e-3), pytest.approx(8.724, abs=1e-3))


def test_a_labelled_image_has_the_traits_of_the_same_image_without_its_label() -> None:
    inside = Intensity(low=400, median=450, high=500, mean=450, std=9)
    whole = entry()
    labelled = whole.model_copy(update={"label": "l.nii.gz", "intensity": inside, "image_intensity": whole.intensity})
    assert traits_of(labelled, DATA) == traits_of(whole, DATA)
    older = labelled.model_copy(update={"image_intensity": None})
    assert not any(name.startswith("intensity") for name in traits_of(older, DATA))


def test_colour_images_have_a_stain() -> None:
    stained = Entry(image="a.png", channels=3, shape=[256, 256], stain=[0.2, 0.6, 0.4])
    found = traits_of(stained, COLOUR)
    assert (found["density_red"], found["density_green"], found["density_blue"]) == (0.2, 0.6, 0.4)
    assert found["channels"] == 2
    assert "density_red" not in traits(DATA)


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_training_profile(tmp_path) is None
    summed = combined_profile([site_profile(patients(12), DATA)], DATA)
    write_training_profile(tmp_path, summed)
    assert read_training_profile(tmp_path) == summed
    assert json.loads((tmp_path / PROFILE_FILE).read_text())["schema"] == 1
    (tmp_path / PROFILE_FILE).write_text("{")
    with pytest.raises(SpecError, match=r"training_profile\.json: no profile of training images"):
        read_training_profile(tmp_path)
