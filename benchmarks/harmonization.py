"""What ComBat is worth beside local norms where sites measure differently, and what it costs where their patients do.

Made features of slides: of 64 numbers, 6 tell the outcome, and all vary with the patient. Three sites train together,
in memory, each with a simulated scanner that gives every number a shift and a scale; a fourth has one that nobody has
seen. The network normalises by batches: its norms are averaged, or kept at each site (FedBN). Outcomes are as frequent
at all sites, or go with the site: then what ComBat takes for the scanner's is the patients' in part. The score is the
AUROC, the mean over the three sites' test patients, and that of the fourth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.bench import Bench, Settings
from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.features import FeatureBag, write_features
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.register import RegisterOptions, register
from oncofed.job.spec import JobSpec
from oncofed.models import register_network
from oncofed.prediction.harmonization import use_patients
from oncofed.prediction.model import TrainedModel
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER, Event, Finished

_NUMBERS, _TELLING, _TILES, _EFFECT = 64, 6, 4, 0.9
_TRAINING, _NEW = ("east", "west", "south"), "north"
# Patients of a site, and the share of them that has the outcome.
_PATIENTS = {"east": 80, "west": 60, "south": 60, "north": 80}
_MIXES: dict[str, dict[str, float]] = {
    "same patients": dict.fromkeys(_PATIENTS, 0.5),
    "outcomes go with the site": {"east": 0.3, "west": 0.5, "south": 0.7, "north": 0.5},
}
# Of scanners: spread of shifts, in patients' spreads, and of the scales' logarithms.
_SCANNER = (1.0, 0.3)
WAYS: dict[str, tuple[str, str]] = {
    "as they are": ("fedavg", "none"),
    "local norms": ("fedbn", "none"),
    "ComBat": ("fedavg", "combat"),
}


class _Normed(nn.Module):
    """The mean of a bag's tiles, normalised over the batch, and two linear layers."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_channels)
        self.layers = nn.Sequential(nn.Linear(in_channels, 16), nn.ReLU(), nn.Linear(16, out_channels))

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Return values (batch, out) of bags (batch, tile, feature)."""
        mean = (bags * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        values: Tensor = self.layers(self.norm(mean))
        return values


@register_network("normed_mean", kind="bag")
def normed_mean(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return a network over bags that normalises by batches."""
    del spatial_dims
    return _Normed(in_channels, out_channels)


def run(bench: Bench) -> None:
    """Measure each way with three seeds and two mixes of patients."""
    if bench.quick:
        bench.skip("harmonization, federated", "AUROC", "left out of a quick run")
        return
    found: dict[str, list[float]] = {}
    for seed in (1, 2, 3):
        for mix, shares in _MIXES.items():
            folder = bench.folder / f"{seed}-{mix[:4]}"
            sites = make_sites(folder, seed, shares)
            for number, way in enumerate(WAYS):
                bench.doing(f"{way}, {mix}, seed {seed}")
                for where, score in scores(job(way, seed), sites, folder / f"run-{number}").items():
                    found.setdefault(f"{mix}: {way}, {where}", []).append(score)
    settings: Settings = {"sites": len(_TRAINING), "seeds": 3}
    for name, values in found.items():
        bench.measured(name, values, "AUROC", "higher", settings)


def make_sites(folder: Path, seed: int, shares: Mapping[str, float]) -> dict[str, Path]:
    """Write and register each site's features; return the datasets' folders."""
    rng = np.random.default_rng(seed)
    return {site: _site(folder / site, _PATIENTS[site], shares[site], rng) for site in _PATIENTS}


def _site(folder: Path, patients: int, share: float, rng: np.random.Generator) -> Path:
    source = folder / "in"
    source.mkdir(parents=True)
    shift = rng.normal(0, 1, _NUMBERS) * _SCANNER[0]
    scale = np.exp(rng.normal(0, 1, _NUMBERS) * _SCANNER[1])
    rows = ["image,patient,label"]
    for number in range(patients):
        outcome = int(number < share * patients)
        patient = rng.normal(0, 1, _NUMBERS)
        patient[:_TELLING] += _EFFECT * outcome
        tiles = (patient + rng.normal(0, 0.5, (_TILES, _NUMBERS))) * scale + shift
        places = np.array([(n % 4 * 128.0, n // 4 * 128.0) for n in range(_TILES)], np.int32)
        bag = FeatureBag(tiles.astype(np.float32), places, 128.0, 64, 1.0, "made", "ab" * 32)
        write_features(source / f"{number:03}.h5", bag)
        rows.append(f"{number:03}.h5,p{number},{('absent', 'present')[outcome]}")
    table = source / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    options = RegisterOptions(
        source, "made", folder / "set", "slides", table=table, workers=1, features=FeatureOptions()
    )
    register(options)
    return folder / "set"


def job(way: str, seed: int) -> JobSpec:
    """Return the job of a way."""
    strategy, features = WAYS[way]
    values: dict[str, Any] = {
        "name": "outcome",
        "title": way,
        "data": {
            "dataset": "made",
            "modality": "microscopy",
            "channels": ["red", "green", "blue"],
            "patch": [64, 64],
            "split": {"validation": 0.15, "test": 0.5},
            "harmonization": {"features": features},
        },
        "task": {
            "type": "slide_classification",
            "classes": {0: "absent", 1: "present"},
            "encoder": {"network": "made", "features": _NUMBERS},
        },
        "model": {"network": "normed_mean"},
        "training": {"steps_per_round": 40, "batch_size": 16, "learning_rate": 0.002, "augmentation": "none"},
        "strategy": {"name": strategy},
        "rounds": {"number": 3},
        "evaluation": {"select": "last"},
        "seed": seed,
    }
    return JobSpec.model_validate(values)


def scores(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> dict[str, float]:
    """Return the AUROC at the sites that trained, by their mean, and at the one that did not."""
    plan, federation = spec.plan(), spec.federation()
    running = {
        site: InProcessSite(plan, federation, SiteContext(site=site, data=sites[site], state=folder / site))
        for site in _TRAINING
    }
    events: list[Event] = []
    train_in_memory(plan, federation, running, folder, events.append)
    (finished,) = (event for event in events if isinstance(event, Finished))
    own = [float(finished.test[site]["mean"]) for site in _TRAINING]
    weights = load_file(folder / MODELS_FOLDER / BEST_MODEL)
    found = {"sites that trained": float(np.mean(own))}
    cases = usable_cases(sites[_NEW], plan.data, plan.supervision(), plan.seed, _NEW).cases
    found["a new site"] = _at_new_site(spec, weights, cases, knows_itself=False)
    if spec.data.harmonization.groups:
        found["a new site with a reference"] = _at_new_site(spec, weights, cases, knows_itself=True)
    return found


def _at_new_site(spec: JobSpec, weights: dict[str, Tensor], cases: Cases, *, knows_itself: bool) -> float:
    """Return the AUROC on all patients of a site that did not train.

    Args:
        spec: the job.
        weights: of the federated model.
        cases: of the site.
        knows_itself: its patients, whose labels nobody looks at, tell how it measures.
    """
    job = spec.model_copy(update={"data": spec.data.model_copy()})
    model = TrainedModel(folder=Path(), job=job, weights=weights, digest="0" * 64)
    every = tuple(cases)
    if knows_itself:
        use_patients(model, every)
    found = model.task.evaluate(model.network(torch.device("cpu")), every, torch.device("cpu"))
    assert found.mean is not None
    return found.mean
