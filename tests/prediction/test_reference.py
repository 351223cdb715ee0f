"""A site that was not in the training tells its own shift from a dataset of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harmonizing_sites import feature_job, feature_site
from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.harmonization.agreed import Agreed
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec
from oncofed.prediction.harmonization import reference_notes, take_reference
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.run import predict
from oncofed.prediction.sources import gather
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER
from oncofed.tasks.bags import alike

pytest.importorskip("h5py")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, Path]:
    """A job, and the folder of its federation of three sites."""
    folder = tmp_path_factory.mktemp("run")
    spec = feature_job({"rounds": {"number": 1}})
    sites = {}
    for number in range(3):
        context = SiteContext(
            site=f"s{number}",
            data=feature_site(folder / f"d{number}", number, seed=number),
            state=folder / f"s{number}",
        )
        sites[context.site] = InProcessSite(spec.plan(), spec.federation(), context)
    train_in_memory(spec.plan(), spec.federation(), sites, folder, lambda event: None)
    return spec, folder


@pytest.fixture
def model(run: tuple[JobSpec, Path]) -> TrainedModel:
    spec, folder = run
    job = spec.model_copy(update={"data": spec.data.model_copy()})
    return TrainedModel(folder=folder, job=job, weights=load_file(folder / MODELS_FOLDER / BEST_MODEL), digest="0" * 64)


def _means(model: TrainedModel, data: Path, out: Path) -> np.ndarray:
    sources = gather([data], out, model.job, out)
    preparation = model.task.inference_preparation()
    found = []
    for source in sources.cases:
        prepared = preparation.prepare(source.case) | preparation.beside_image(source.case)
        bags = alike(model.task.data, prepared["bags"].float()[None], prepared["table"][None])
        found.append(bags[0].mean(0).numpy())
    return np.stack(found)


def test_its_features_become_those_of_the_average_site(model: TrainedModel, tmp_path: Path) -> None:
    north = feature_site(tmp_path / "north", 99, seed=5)
    agreed = Agreed.of(model.weights, ("features",))
    assert agreed
    common = agreed.common["features"]
    before = np.abs(_means(model, north, tmp_path / "out").mean(axis=0) - common.mean) / common.spread
    assert "--reference" in reference_notes(model)[0]
    take_reference(model, str(north), tmp_path / "out", tmp_path)
    after = np.abs(_means(model, north, tmp_path / "out").mean(axis=0) - common.mean) / common.spread
    assert after.mean() < before.mean() / 3
    assert reference_notes(model) == []


def test_predictions_are_made_anew_for_another_reference(model: TrainedModel, tmp_path: Path) -> None:
    north = feature_site(tmp_path / "north", 99, count=8, seed=5)
    sources = gather([north], tmp_path / "out", model.job, tmp_path)
    assert len(predict(model, sources, tmp_path / "out", CPU).made) == 8
    assert len(predict(model, sources, tmp_path / "out", CPU).kept) == 8
    take_reference(model, str(north), tmp_path / "out", tmp_path)
    assert len(predict(model, sources, tmp_path / "out", CPU).made) == 8


def test_four_patients_are_too_few(model: TrainedModel, tmp_path: Path) -> None:
    few = feature_site(tmp_path / "few", 7, count=4)
    with pytest.raises(DataError, match="told from 5 patients at least"):
        take_reference(model, str(few), tmp_path / "out", tmp_path)


def test_a_job_without_has_no_use_for_it(model: TrainedModel, tmp_path: Path) -> None:
    job = feature_job(harmonization={})
    other = TrainedModel(folder=model.folder, job=job, weights=model.weights, digest=model.digest)
    with pytest.raises(SpecError, match="makes no values of sites alike"):
        take_reference(other, "north", tmp_path / "out", tmp_path)
    assert reference_notes(other) == []
