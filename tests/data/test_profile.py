"""A site's profile, patients' numbers, and the resulting plan."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.planning import make_plan, quantile
from oncofed.data.profile import case_values, features, make_profile
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from oncofed.job.spec import read_job
from synthetic import make_site

CLASSES = {1: "shell", 2: "core"}


def test_the_fingerprint_counts_the_cases(tmp_path: Path) -> None:
    folder = make_site(tmp_path / "in")
    affine = np.diag([2.0, 1, 3, 1])[[1, 0, 2, 3]]  # the first stored axis runs to the front
    for sub in ("imagesTr", "labelsTr"):
        values = np.asarray(nib.load(folder / sub / "case_0.nii.gz").dataobj)[:10]
        nib.save(nib.Nifti1Image(values, affine), folder / sub / "case_0.nii.gz")
    (folder / "imagesTr" / "case_5.nii.gz").write_bytes(b"")
    register(RegisterOptions(folder, "balls", tmp_path / "set", labels={0: "background", **CLASSES}))
    profile, _ = make_profile(tmp_path / "set")
    assert (profile.cases, profile.patients, profile.set_aside) == (5, 5, 1)
    assert profile.shapes["anterior"].minimum == 10
    assert profile.shapes["right"].minimum == 20
    assert profile.spacings_mm["anterior"].maximum == 2
    assert profile.spacings_mm["superior"].maximum == 3
    assert profile.class_cases == {"shell": 5, "core": 5}
    counted = [np.asarray(nib.load(p).dataobj) for p in sorted((folder / "labelsTr").glob("*"))[1:5]]
    shares = [(values == 2).mean() for values in counted]
    assert profile.class_share["core"].maximum >= max(shares) - 1e-9


def test_a_dataset_without_a_readable_case_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "a.nii", "label": "b.nii"}]}))
    with pytest.raises(DataError, match="none of its 1 cases can be read"):
        make_profile(tmp_path)


def test_only_one_declared_value_per_patient_is_reported(tmp_path: Path) -> None:
    folder = make_site(tmp_path / "in")
    manifest = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(manifest["training"]):
        entry["patient"] = f"p{number // 2}"
    (folder / "dataset.json").write_text(json.dumps(manifest))
    values = case_values(folder, "mri", 3, CLASSES)
    declared = {name for name, _, _ in features("mri", 3, CLASSES)}
    assert set(values) == declared
    assert {len(numbers) for numbers in values.values()} == {3}
    assert values["log2_size_right"] == [pytest.approx(np.log2(20))] * 3


def _statistics(spacing: list[float], size: list[float], thin: float | None = None) -> dict[str, dict[str, object]]:
    axes = ("right", "anterior", "superior")
    mean = {f"log2_spacing_{a}": float(np.log2(s)) for a, s in zip(axes, spacing, strict=True)}
    mean |= {f"log2_size_{a}": float(np.log2(n)) for a, n in zip(axes, size, strict=True)}
    low = np.log2(thin or spacing[2])
    histogram = {"log2_spacing_superior": [[low, low + 0.01, 20], [low + 0.01, 4.0, 80]]}
    return {"mean": mean, "histogram": histogram}


def test_a_plan_for_ct_of_the_abdomen_is_like_nnunets() -> None:
    plan = make_plan(_statistics([0.8, 0.8, 2.5], [512, 512, 130], 1.5), {"a": 60, "b": 40}, "ct", 3, 8)
    data = plan.settings["data"]
    assert data["spacing"][:2] == [0.8, 0.8]
    assert data["spacing"][2] == pytest.approx(1.5, rel=0.01)
    voxels = np.prod(data["patch"])
    assert 0.8 * 128**3 < voxels < 1.2 * 128**3
    assert plan.settings["training"]["batch_size"] == 2
    assert plan.settings["model"]["channels"] == [32, 64, 128, 256, 320, 320]
    assert plan.settings["model"]["network"] == "dynunet"
    by_setting = {reason.setting: reason for reason in plan.reasons}
    assert "10th percentile" in by_setting["data.spacing"].because
    assert by_setting["data.patch"].statistic == "mean of log2_size"


def test_a_plan_for_small_crops_takes_the_whole_image() -> None:
    plan = make_plan(_statistics([1, 1, 1], [35, 50, 35]), {"a": 60}, "mri", 3, 8)
    assert plan.settings["data"]["patch"] == [40, 56, 40]
    assert plan.settings["training"]["batch_size"] == 2  # a twentieth of 60 such images


def test_many_slices_keep_their_typical_distance() -> None:
    plan = make_plan(_statistics([0.8, 0.8, 2.5], [512, 512, 220], 1.5), {"a": 60}, "ct", 3, 8)
    assert plan.settings["data"]["spacing"] == [0.8, 0.8, 2.5]


def test_where_a_histogram_hides_its_ends_mean_and_spread_tell_the_tenth_percentile() -> None:
    statistics: dict[str, dict[str, object]] = _statistics([0.8, 0.8, 4.0], [512, 512, 100])
    name = "log2_spacing_superior"
    statistics |= {"count": {name: 100}, "stddev": {name: 0.5}, "histogram": {name: [[2.0, 2.25, 60]]}}
    plan = make_plan(statistics, {"a": 100}, "ct", 3, 8)
    assert plan.settings["data"]["spacing"][2] == pytest.approx(2 ** (2 - 1.2816 * 0.5), rel=1e-3)
    assert "mean and spread" in next(r.statistic for r in plan.reasons if r.setting == "data.spacing")


def test_images_of_unknown_spacing_keep_their_grid() -> None:
    statistics = {"mean": {"log2_size_right": 8.3, "log2_size_down": 8.0}}
    plan = make_plan(statistics, {"a": 60}, "microscopy", 2, 1)
    assert plan.settings["data"]["spacing"] is None
    assert len(plan.settings["data"]["patch"]) == 2
    with pytest.raises(ValueError, match="no site told log2_size_right"):
        make_plan({"mean": {}}, {}, "microscopy", 2)


@settings(deadline=None, max_examples=40)  # other tests use the same cores
@given(
    spacing=st.lists(st.floats(0.2, 8), min_size=3, max_size=3),
    size=st.lists(st.integers(16, 900), min_size=3, max_size=3),
    memory=st.floats(0.1, 80),
)
def test_every_plan_makes_a_valid_job(spacing: list[float], size: list[int], memory: float) -> None:
    plan = make_plan(_statistics(spacing, [float(n) for n in size]), {"a": 9}, "mri", 3, memory)
    changed = read_job("hippocampus_segmentation").changed(plan.settings)
    assert changed.data.patch == tuple(plan.settings["data"]["patch"])


@given(values=st.lists(st.floats(0, 9.99), min_size=20, max_size=200), share=st.floats(0.05, 0.95))
def test_a_quantile_of_a_histogram_is_within_a_bin(values: list[float], share: float) -> None:
    counts, edges = np.histogram(values, 40, (0, 10))
    bins = [[float(edges[n]), float(edges[n + 1]), int(c)] for n, c in enumerate(counts)]
    found = quantile(bins, share)
    assert found is not None
    low, high = np.quantile(values, share, method="lower"), np.quantile(values, share, method="higher")
    assert low - 0.26 <= found <= high + 0.26


def test_a_withheld_histogram_has_no_quantile() -> None:
    assert quantile([[0, 1, 0], [1, 2, 0]], 0.5) is None
