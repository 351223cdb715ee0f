"""Reasons not to trust a prediction.

The image, the network's doubt, and other models of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from commands import Outcome
from oncofed.artifacts.training_profile import TrainingProfile, combined_profile, site_profile, write_training_profile
from oncofed.data.case import Case
from oncofed.data.case_facts import measure
from oncofed.data.images import read_image
from oncofed.data.manifest import Entry, Intensity
from oncofed.data.spec import DataSpec
from oncofed.data.traits import traits_of
from oncofed.job.spec import parse_job
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import gather
from oncofed.prediction.trust.checks import TrustChecks, entropy_of, verdict_of
from oncofed.prediction.trust.ensemble import disagreement, ensemble_members
from oncofed.prediction.trust.out_of_distribution import Deviation, find_deviations
from oncofed.tasks.inferred import ClassScores, LabelMap
from synthetic import make_volume, write_job

CPU = torch.device("cpu")
MRI, CT = DataSpec(dataset="any"), DataSpec(dataset="any", modality="ct")
XRAY = DataSpec(dataset="any", modality="xray", patch=(32, 32))
COLOUR = DataSpec(dataset="any", modality="microscopy", channels=("red", "green", "blue"), patch=(32, 32))


def _entry(slices: float = 1.0, modality: str | None = "MR", low: float = -1000, **more: Any) -> Entry:
    intensity = Intensity(low=low, median=100, high=400, mean=90, std=50)
    facts = {"channels": 1, "shape": [64, 64, 64], "spacing": [1.0, 1.0, slices], "intensity": intensity}
    return Entry.model_validate({"image": "a.nii.gz", "modality": modality, **facts, **more})


def _profile(data: DataSpec, *entries: Entry) -> TrainingProfile:
    images = [(f"p{n}", entry) for n, entry in enumerate(entries)]
    return combined_profile([site_profile(images, data)], data)


def _reasons(entry: Entry, data: DataSpec, profile: TrainingProfile | None) -> dict[str, Deviation]:
    reasons, _ = find_deviations(traits_of(entry, data), entry.modality, data, profile)
    return {reason.feature: reason for reason in reasons}


def test_thick_slices_are_outside_and_told_in_words() -> None:
    profile = _profile(MRI, *[_entry(mm) for mm in (0.9, 1.0, 1.1) for _ in range(10)])
    assert _reasons(_entry(1.2), MRI, profile) == {}
    reason = _reasons(_entry(5.0), MRI, profile)["spacing_superior"]
    assert (reason.value, reason.range) == (5.0, (0.7711, 1.297))
    assert reason.words == "its voxels are 5 mm apart from head to foot, training had 0.771 to 1.3 mm"
    many = _reasons(_entry(shape=[64, 64, 900]), MRI, profile)["size_superior"]
    assert many.words == "it has 900 voxels from head to foot, training had 53.8 to 76.1"


def test_how_much_of_a_slide_was_scanned_is_no_reason() -> None:
    def slide(width: int) -> Entry:
        return _entry(modality="SM", channels=3, shape=[width, 900], spacing=[0.0005] * 2, tiles="slide.npz")

    profile = _profile(COLOUR, *[slide(1000) for _ in range(30)])
    assert _reasons(slide(80_000), COLOUR, profile) == {}
    coarse = slide(1000).model_copy(update={"spacing": [0.004, 0.004]})
    assert set(_reasons(coarse, COLOUR, profile)) == {"spacing_right", "spacing_down"}


def test_the_jobs_limits_apply_without_a_profile() -> None:
    assert _reasons(_entry(modality="CT"), CT, None) == {}
    assert _reasons(_entry(modality=None), CT, None) == {}, "NIfTI does not say"
    other = _reasons(_entry(modality="MR"), CT, None)["modality"]
    assert other.words == "its modality is MR, the model's is ct"
    units = _reasons(_entry(modality="CT", low=3), CT, None)["intensity_low"]
    assert units.words == "its darkest values are 3: no Hounsfield units, of which air has -1000"
    _, not_known = find_deviations(traits_of(_entry(), MRI), "MR", MRI, None)
    assert {"spacing_superior", "modality", "edge"} <= set(not_known)


def test_a_mammogram_is_no_radiograph() -> None:
    flat = Entry(image="a.png", shape=[512, 512], channels=1, modality="DX")
    profile = _profile(XRAY, *[flat] * 8)
    assert _reasons(flat.model_copy(update={"modality": "CR"}), XRAY, profile) == {}
    found = _reasons(flat.model_copy(update={"modality": "MG"}), XRAY, profile)["modality"]
    assert found.words == "its modality is mammogram, training had radiograph"


def test_intensities_of_other_units_are_outside() -> None:
    profile = _profile(CT, *[_entry(modality="CT")] * 10)
    window = Intensity(low=-1000, median=1800, high=3000, mean=1500, std=700)
    found = _reasons(_entry(modality="CT", intensity=window), CT, profile)
    assert found["intensity_median"].words == "the median of its intensities is 1800 HU, training had 100 to 200 HU"


def _picture(folder: Path, name: str, values: np.ndarray) -> Entry:
    Image.fromarray(values.astype(np.uint8)).save(folder / f"{name}.png")
    return Entry(image=f"{name}.png", **measure(read_image(folder / f"{name}.png"), None))


def test_an_inverted_radiograph_is_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96] - 48
    chest = 220 * np.exp(-(x**2 + y**2) / 900) + rng.uniform(5, 25, (12, 96, 96))
    trained = [_picture(tmp_path, f"c{n}", one) for n, one in enumerate(chest)]
    profile = _profile(XRAY, *trained)
    assert _reasons(trained[0], XRAY, profile) == {}
    found = _reasons(_picture(tmp_path, "inverted", 255 - chest[0]), XRAY, profile)
    assert "inverted" in found["edge"].words


def test_another_stain_and_a_grey_image_are_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def stained(name: str, colour: tuple[int, int, int]) -> Entry:
        return _picture(tmp_path, name, rng.integers(0, 20, (64, 64, 1)) + np.array(colour))

    profile = _profile(COLOUR, *[stained(f"he{n}", (180, 90, 150)) for n in range(10)])
    assert _reasons(stained("he", (180, 90, 150)), COLOUR, profile) == {}
    other = _reasons(stained("ihc", (120, 130, 40)), COLOUR, profile)
    assert "optical density" in other["density_blue"].words
    grey = _picture(tmp_path, "grey", rng.integers(40, 200, (64, 64)))
    assert _reasons(grey, COLOUR, profile)["channels"].words == "it has 1 channel, training had 3"


def test_a_range_that_reaches_the_histograms_end_is_open() -> None:
    profile = _profile(MRI, *[_entry(0.0005)] * 8)
    assert _reasons(_entry(0.0001), MRI, profile) == {}
    assert _reasons(_entry(1.0), MRI, profile)["spacing_superior"].words.endswith("training had at most 0.00106 mm")


def test_entropy_is_0_if_certain_and_1_if_uniform() -> None:
    assert entropy_of(np.array([1.0, 0.0])) == 0
    assert entropy_of(np.array([0.25] * 4)) == pytest.approx(1)
    assert entropy_of(np.array([0.9, 0.1])) == pytest.approx(-(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)))


def _map(*ones: int) -> LabelMap:
    values = torch.zeros(8, 1, dtype=torch.uint8)
    values[list(ones)] = 1
    return LabelMap(values, np.eye(4))


def test_disagreement_is_one_minus_dice_over_all_pairs() -> None:
    found = disagreement(_map(0, 1), {"east": _map(0, 1), "west": _map(1, 2)}, {1: "tumour", 2: "cyst"})
    assert found.by_class == {"tumour": pytest.approx((0 + 0.5 + 0.5) / 3)}
    assert found.mean == pytest.approx(1 / 3)
    assert found.from_model == {"east": 0, "west": 0.5}
    assert found.beyond(0.3) == ("west",)
    assert disagreement(_map(), {"east": _map()}, {1: "tumour"}).mean is None
    assert disagreement(_map(), {"east": _map(3)}, {1: "tumour"}).mean == 1


def test_disagreement_of_classes_is_1_if_opposed_and_0_if_equal() -> None:
    one, other = ClassScores(np.array([60.0, 0.0])), ClassScores(np.array([0.0, 60.0]))
    names = {0: "benign", 1: "malignant"}
    assert disagreement(one, {"east": one}, names).mean == pytest.approx(0, abs=1e-9)
    assert disagreement(one, {"east": other}, names).mean == pytest.approx(1)
    unsure = ClassScores(np.array([0.0, 0.0]))
    assert disagreement(unsure, {"east": unsure}, names).mean == 0, "unsure together is no disagreement"
    assert verdict_of((), True, 0.9, None) == "look"
    assert verdict_of((), True, 0.1, disagreement(one, {"east": other}, names)) == "look"
    assert verdict_of((), True, 0.1, disagreement(one, {"east": one}, names)) == "ok"


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    """A run with two sites' models and a profile.

    Of volumes of 1 mm.
    """
    folder = tmp_path / "run"
    job = parse_job(write_job(folder))
    (folder / "model" / "baselines").mkdir(parents=True)
    weights = job.plan().initial_weights()
    save_file(weights, folder / "model" / "model.safetensors")
    for name, factor in (("east", 1.0), ("west", -1.0), ("pooled", 2.0)):
        save_file(
            {n: v * factor if v.is_floating_point() else v for n, v in weights.items()},
            folder / "model" / "baselines" / f"{name}.safetensors",
        )
    return load_model(folder)


def _volume(path: Path, seed: int, spacing: float = 1.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(make_volume(seed)[0], np.diag([1, 1, spacing, 1])), path)
    return path


def test_an_option_leaves_images_outside_to_a_person(model: TrainedModel, tmp_path: Path) -> None:
    for seed in range(8):
        _volume(tmp_path / "images" / f"v{seed}.nii.gz", seed)
    out = tmp_path / "out"
    learned = gather([tmp_path / "images"], tmp_path / "profiled", model.job, tmp_path)
    images = [(source.name, source.entry) for source in learned.cases]
    write_training_profile(
        model.folder / "model", combined_profile([site_profile(images, model.job.data)], model.job.data)
    )
    thick = _volume(tmp_path / "new" / "thick.nii.gz", 30, 4.0)
    usual = _volume(tmp_path / "new" / "usual.nii.gz", 31)
    sources = gather([thick, usual], out, model.job, tmp_path)

    made = predict(model, sources, out, CPU)
    said = {record["name"]: record["trust"] for record in made.done}
    assert said["thick"]["verdict"] == "outside"
    assert list(said["thick"]["reasons"]) == [
        "its voxels are 4 mm apart from head to foot, training had 0.917 to 1.09 mm"
    ]
    assert said["usual"]["outside"] == []
    for trust in said.values():
        assert trust["members"] == ["east", "west"], "pooled is no member"
        assert trust["entropy"] is None or 0 <= trust["entropy"] <= 1
        assert 0 < trust["disagreement"] <= 1
        assert "east" not in trust["outside_members"]
    assert json.loads((out / "predictions.json").read_text())["cases"][0]["trust"] == said["thick"]

    again = predict(model, sources, out, CPU, Options(refuse_outside=True))
    assert again.kept == ["usual"]
    assert [record["name"] for record in again.done] == ["usual"]
    assert [(bad.name, bad.reason) for bad in again.set_aside] == [
        ("thick", "left to a person: its voxels are 4 mm apart from head to foot, training had 0.917 to 1.09 mm")
    ]
    assert not (out / "cases" / "thick").exists()

    alone = predict(model, sources, out, CPU, Options(ensemble=False))
    assert sorted(alone.made) == ["thick", "usual"]
    assert all(record["trust"]["disagreement"] is None for record in alone.done)


def test_a_labelled_case_is_measured_as_an_unlabelled_one(model: TrainedModel, tmp_path: Path) -> None:
    path = _volume(tmp_path / "new" / "one.nii.gz", 1)
    (source,) = gather([path], tmp_path / "out", model.job, tmp_path).cases
    checks = TrustChecks(model, CPU)
    inside = Intensity(low=1, median=1, high=1, mean=1, std=0)
    older = source.entry.model_copy(update={"label": "l.nii.gz", "intensity": inside, "image_intensity": None})
    assert checks.check_image(replace(source, entry=older)) == checks.check_image(source)
    gone = replace(source, entry=older, case=Case("gone", "gone", tmp_path / "gone.nii.gz", 0))
    assert "intensity_low" in checks.check_image(gone)[1]
    assert ensemble_members(replace(model, members={"fold 1": path})) == {"fold 1": path}


def test_the_command_says_what_not_to_trust(
    model: TrainedModel, tmp_path: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncofed.prediction.trust.checks.LOOK_ENTROPY_MAPS", 2.0)  # its weights are a seed's
    monkeypatch.setattr("oncofed.prediction.trust.checks.LOOK_DISAGREEMENT_MAPS", 2.0)
    entries = [Entry(image="a", shape=[20, 20, 20], spacing=[1.0, 1.0, 1.0], orientation="RAS", channels=1)] * 9
    write_training_profile(model.folder / "model", _profile(model.job.data, *entries))
    images = [_volume(tmp_path / "new" / f"{name}.nii.gz", 1, mm) for name, mm in (("thick", 4.0), ("usual", 1.0))]
    given = ["predict", model.folder, *images, "--workers", "1", "--no-page", "--workspace", tmp_path / "workspace"]
    told = run(*given, "--out", tmp_path / "one")
    assert told.status == 0, told.text
    assert "2 other models of the run predict too (east, west): 3 times the work" in told.text
    assert (
        "not like what the model was trained on: thick: its voxels are 4 mm apart from head to foot, training had"
        in told.text
    )
    assert "usual:" not in told.text
    refused = run(*given, "--out", tmp_path / "two", "--refuse-outside", "--no-ensemble", "--json")
    assert refused.status == 3
    values = json.loads(refused.output)
    assert (values["predicted"], [bad["name"] for bad in values["set_aside"]]) == (["usual"], ["thick"])
    assert values["cases"][0]["trust"]["members"] == []
