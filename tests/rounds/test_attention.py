"""Sites tell how far answers move without the tiles that were attended to, where five patients are behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.features import FeatureBag, write_features
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.register import RegisterOptions, register
from oncofed.job.spec import parse_job
from oncofed.rounds.events import Event, Finished
from oncofed.tasks.deletion import ORDERS, SHARES, Deletion

pytest.importorskip("h5py")

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


def _told(folder: Path, sites: dict[str, int]) -> Deletion | None:
    (folder / "job.yaml").write_text(JOB)
    spec = parse_job(folder / "job.yaml")
    running = {}
    for name, patients in sites.items():
        context = SiteContext(site=name, data=_site(folder / name, patients), state=folder / f"state-{name}")
        running[name] = InProcessSite(spec.plan(), spec.federation(), context)
    events: list[Event] = []
    train_in_memory(spec.plan(), spec.federation(), running, folder / "run", events.append)
    (finished,) = [event for event in events if isinstance(event, Finished)]
    return Deletion.model_validate(finished.attention) if finished.attention else None


def test_a_federations_record_holds_the_deletion_test_of_its_sites(tmp_path: Path) -> None:
    found = _told(tmp_path, {"north": 20, "south": 12, "small": 6})
    assert found is not None
    # Of the small site fewer than five are test patients.
    assert found.patients == 12 + 7
    assert found.shares == SHARES
    assert set(found.moved) == set(ORDERS)
    assert all(0 <= value <= 1 for curve in found.moved.values() for value in curve)
    assert found.interval is not None
    assert found.interval[0] <= found.gain <= found.interval[1]


def test_a_federation_of_few_test_patients_tells_nothing(tmp_path: Path) -> None:
    assert _told(tmp_path, {"one": 6, "other": 6}) is None
