"""Run folders without training.

The weights are those of the job's seed.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from oncofed.artifacts.provenance import write_provenance
from oncofed.job.spec import parse_job
from oncofed.models.weights import Weights
from synthetic import JOB, write_job

# Flat grey images in two classes.
CLASSIFIER = """\
schema: 1
name: stripes
title: Two kinds of stripes
data: {dataset: stripes, modality: xray, patch: [32, 32]}
task: {type: classification, classes: {0: broad, 1: narrow}}
model: {network: resnet18, arguments: {widen_factor: 0.125}}
rounds: {number: 2}
seed: 3
"""
# Flat grey images, in which discs are drawn.
FLAT = """\
schema: 1
name: discs
title: Discs
data: {dataset: discs, modality: microscopy, patch: [16, 16]}
task: {type: segmentation, classes: {1: disc}}
model: {network: unet, channels: [4, 8], residual_units: 1}
rounds: {number: 2}
seed: 3
"""
# Flat colour images, in which nuclei are told apart.
NUCLEI = """\
schema: 1
name: nuclei
title: Nuclei
data: {dataset: nuclei, modality: microscopy, channels: [red, green, blue], patch: [32, 32]}
task: {type: objects, classes: {1: nucleus}}
model: {network: unet, channels: [4, 8], residual_units: 1}
rounds: {number: 2}
seed: 3
"""
# Slides in two classes.
SLIDES = """\
schema: 1
name: slides
title: Slides
data: {dataset: slides, modality: microscopy, channels: [red, green, blue], patch: [128, 128], spacing: [0.001, 0.001]}
task: {type: slide_classification, classes: {0: normal, 1: tumour}}
model: {network: attention_mil, arguments: {hidden: 16}}
rounds: {number: 2}
seed: 3
"""


def make_run(folder: Path, text: str = JOB, weights: Weights | None = None) -> Path:
    """Write a run's folder as ``job run`` leaves it, with other weights if given."""
    job = parse_job(write_job(folder, text))
    weights = weights or job.plan().initial_weights()
    (folder / "model").mkdir()
    save_file(weights, folder / "model" / "model.safetensors")
    write_provenance(folder / "provenance.json", weights, {"job": job.name}, folder)
    return folder
