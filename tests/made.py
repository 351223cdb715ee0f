"""Untrained models, their predictions and cases."""

from __future__ import annotations

from pathlib import Path

import torch

from oncofed.data.case import Case
from oncofed.data.manifest import Entry
from oncofed.prediction.model import TrainedModel, load_model
from oncofed.prediction.outputs.registry import select_outputs
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import Source, gather
from trained import make_run

COLOURS = "channels: [red, green, blue]"
JOB = """\
schema: 1
name: made
title: Made for tests
data: {{dataset: made, modality: microscopy, {data}}}
task: {task}
model: {model}
training: {{steps_per_round: 1, batch_size: 2, learning_rate: 0.01, warmup_steps: 0}}
rounds: {{number: 1}}
seed: 2
"""


def made_model(folder: Path, task: str, model: str, data: str = f"{COLOURS}, patch: [64, 64]") -> TrainedModel:
    """Return an untrained model from a run's folder.

    Its weights are those of the job's seed.
    """
    return load_model(make_run(folder, JOB.format(task=task, model=model, data=data)))


def made_source(image: Path, name: str = "case", **more: object) -> Source:
    """Return a case of one image that nobody labelled."""
    entry = Entry(image=image.name, checksum="0" * 64, **more)  # type: ignore[arg-type]
    spacing = tuple(entry.spacing) if entry.spacing else None
    return Source(name, Case(name, name, image, 0, spacing=spacing, entry=entry), entry)


def made_predictions(model: TrainedModel, images: Path, out: Path, less: tuple[str, ...] = ()) -> Predictions:
    """Return predictions of a folder of images.

    On the CPU.
    """
    sources = gather([images], out, model.job, out.parent / "datasets")
    return predict(model, sources, out, torch.device("cpu"), Options(select_outputs(less=less)))
