"""A site's labels beside the federated model's answers."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.job.spec import JobSpec, read_job
from oncofed.messages.requests import EvaluateRequest
from oncofed.models.weights import Weights
from oncofed.training import Trainer
from synthetic import Voice, make_site, write_job

_SPOILED = {"case_3", "case_11"}


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    changes = {"evaluation": {"doubtful_labels": True}, "training": {"steps_per_round": 40}}
    return read_job(write_job(tmp_path / "job")).changed(changes)


def _learned(spec: JobSpec, folder: Path) -> Weights:
    training = InProcessTraining(
        plan=spec.plan(),
        federation=spec.federation(),
        context=SiteContext(site="east", data=make_site(folder / "east", 8, seed=1), state=folder / "east-state"),
        reporter=Voice(),
    )
    training.prepare()
    trainer: Trainer = training.trainer
    trainer.train(40)
    weights = trainer.weights()
    training.close()
    return weights


def test_spoiled_labels_are_first_in_a_list_that_stays(spec: JobSpec, tmp_path: Path) -> None:
    data, state, voice = make_site(tmp_path / "west", 16), tmp_path / "state", Voice()
    for name in _SPOILED:
        path = data / "labelsTr" / f"{name}.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 8, axis=0), image.affine), path)
    context = SiteContext(site="west", data=data, state=state)
    training = InProcessTraining(plan=spec.plan(), federation=spec.federation(), context=context, reporter=voice)
    training.prepare()
    weights = _learned(spec, tmp_path)
    asked = EvaluateRequest(weights=weights, round=1, split="test")
    training.validate(asked, lambda: False)
    assert not (state / "label_doubts.csv").exists(), "of the job's model alone"
    kept = EvaluateRequest(weights=weights, round=1, split="test", keep=True)
    numbers = training.validate(kept, lambda: False, "balls").numbers
    assert numbers.keys() == {"evaluation", "validate_s"}
    path = state / "label_doubts.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows[:2]} == _SPOILED
    assert {row["case"] for row in rows if row["suspected"] == "True"} >= _SPOILED
    assert len(rows) == 16
    assert {row["split"] for row in rows} == {"training", "validation", "test"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert any("of 16 labels disagree with the model's answers" in note for note in voice.notes)
    assert not any(name in note for name in _SPOILED for note in voice.notes)
    written = path.stat().st_mtime_ns
    training.validate(kept, lambda: False, "balls")
    assert path.stat().st_mtime_ns == written, "asked again, it is there"
    training.close()
