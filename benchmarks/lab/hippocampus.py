"""Three sites that learn an outcome from hippocampus volumes.

The masks of the hippocampus (Medical Segmentation Decathlon, task 4) stand for images; outcomes follow laws that a
suite states.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from oncofed.data.manifest import SALT_FILE
from oncofed.models import register_network

SITES = ("east", "north", "west")
# Of a job: volumes small enough for a network that trains in seconds, and more test patients than training needs.
DATA: dict[str, Any] = {
    "dataset": "hippocampus",
    "modality": "ct",
    "window": [0, 1],
    "patch": [16, 16, 16],
    "spacing": [3, 3, 3],
    "split": {"validation": 0.15, "test": 0.35},
}
TRAINING: dict[str, Any] = {"steps_per_round": 50, "batch_size": 8, "learning_rate": 0.01, "augmentation": "none"}


def counting_model() -> dict[str, str]:
    """Return a job's ``model`` section; the network is registered by the first call."""
    register_network("counting", kind="image")(counting)
    return {"network": "counting"}


def counting(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return a network that adds up what it sees, and trains in seconds on volumes of 16 or 24 voxels a side."""
    assert spatial_dims == 3
    convolution = nn.Conv3d(in_channels, 8, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.ReLU(), _Added(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, out_channels))


class _Added(nn.Module):
    """Adds up each channel: 64 times its mean, so that numbers stay near one whatever the voxels' size."""

    def forward(self, values: Tensor) -> Tensor:
        """Return (batch, channel) of (batch, channel, x, y, z)."""
        return 64 * values.mean(dim=(2, 3, 4))


def hippocampus() -> list[Path]:
    """Return the files of the masks; none without ``ONCOFED_DATA``."""
    return sorted(Path(os.environ.get("ONCOFED_DATA", ""), "hippocampus", "labelsTr").glob("*.nii.gz"))


def standardised_volumes(masks: Sequence[Path]) -> NDArray[np.float64]:
    """Return the structures' volumes, of mean 0 and spread 1, (mask,)."""
    volumes = np.array([np.count_nonzero(np.asarray(nib.load(path).dataobj)) for path in masks], float)
    return np.asarray((volumes - volumes.mean()) / volumes.std())


def write_sites(
    folder: Path,
    masks: Sequence[Path],
    entries: Sequence[Mapping[str, Any]],
    targets: Mapping[str, Any],
    order: NDArray[np.int64],
    splits: Sequence[str] | None = None,
) -> dict[str, Path]:
    """Deal patients to the sites; return folders by site.

    Args:
        folder: to write to.
        masks: of the patients.
        entries: what ``dataset.json`` says of each, beside its image.
        targets: as ``dataset.json`` declares them.
        order: in which patients are dealt.
        splits: list of ``dataset.json`` that each patient is in; None: all are in training, and the job splits.
    """
    of_site: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in SITES}
    for number, patient in enumerate(order):
        name = masks[patient].name
        image = {"image": f"imagesTr/{name}", "name": name.partition(".")[0]}
        own = of_site[SITES[number % len(SITES)]].setdefault(splits[patient] if splits else "training", [])
        own.append({**image, **entries[patient]})
    for site, lists in of_site.items():
        (folder / site).mkdir(parents=True)
        (folder / site / SALT_FILE).write_text(site)  # as a registered folder has it, which keeps prepared images
        (folder / site / "imagesTr").symlink_to(masks[0].parent)
        (folder / site / "dataset.json").write_text(json.dumps({"targets": targets, **lists}))
    return {site: folder / site for site in SITES}
