"""Sites whose slides bring features, and a federation of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.features import FeatureBag, write_features
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.register import RegisterOptions, register
from oncofed.job.spec import JobSpec, parse_job
from oncofed.rounds.events import Event

JOB = """\
schema: 1
name: attention
title: Whether attention is faithful
data: {dataset: bags, modality: microscopy, channels: [red, green, blue], patch: [224, 224], spacing: [0.0005, 0.0005],
  split: {validation: 0.2, test: 0.6}}
task: {type: slide_classification, classes: {0: normal, 1: tumour}, encoder: {network: uni}}
model: {network: attention_mil, arguments: {hidden: 4, attention: 2}}
training: {steps_per_round: 1, batch_size: 2, augmentation: none}
rounds: {number: 1}
"""


def _site(folder: Path, patients: int) -> Path:
    """Register features of a site's slides, one of each patient."""
    rng = np.random.default_rng(patients)
    (folder / "in").mkdir(parents=True)
    rows = ["slide,patient,label"]
    for number in range(patients):
        places = np.stack([np.arange(9) * 224, np.zeros(9)], axis=1).astype(np.int32)
        values = rng.normal(number % 2, 1, (9, 1024)).astype(np.float32)
        bag = FeatureBag(values, places, 224.0, 224, 0.5, "uni", "ab" * 32)
        write_features(folder / "in" / f"s{number}.h5", bag)
        rows.append(f"s{number}.h5,P{number},{('normal', 'tumour')[number % 2]}")
    table = folder / "in" / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    options = RegisterOptions(
        folder / "in", "bags", folder / "set", "slides", table=table, workers=1, features=FeatureOptions()
    )
    register(options)
    return folder / "set"


def train_attentive(
    folder: Path, patients: Mapping[str, int], record: Callable[[Event], None], job: str = JOB
) -> JobSpec:
    """Train a head over made features at sites of so many patients; the run is in ``folder``/run."""
    (folder / "job.yaml").write_text(job)
    spec = parse_job(folder / "job.yaml")
    running = {}
    for name, count in patients.items():
        context = SiteContext(site=name, data=_site(folder / name, count), state=folder / f"state-{name}")
        running[name] = InProcessSite(spec.plan(), spec.federation(), context)
    train_in_memory(spec.plan(), spec.federation(), running, folder / "run", record)
    return spec
