"""Invented patients: a bright lesion in noise."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

_SIDE = 40
_RADIUS = (5.0, 9.0)


def make_patients(folder: Path, patients: int, seed: int) -> Path:
    """Write invented patients in the Decathlon's layout; return the folder.

    Each has a volume of 40³ voxels of 1 mm, with one ball of 5 to 9 mm radius that is brighter than its surroundings,
    and the ball's mask, named lesion.

    Args:
        folder: to make.
        patients: how many.
        seed: of all that is random; another one is another hospital.
    """
    rng = np.random.default_rng(seed)
    contrast, noise = rng.uniform(0.8, 1.2), rng.uniform(0.15, 0.3)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    cases = []
    for number in range(patients):
        radius = rng.uniform(*_RADIUS)
        centre = rng.uniform(radius + 2, _SIDE - radius - 2, 3)
        distance = np.linalg.norm(np.indices((_SIDE,) * 3) - centre[:, None, None, None], axis=0)
        mask = (distance < radius).astype(np.uint8)
        image = (1 + contrast * mask + rng.normal(0, noise, mask.shape)).astype(np.float32)
        case = {"image": f"imagesTr/patient_{number:03d}.nii.gz", "label": f"labelsTr/patient_{number:03d}.nii.gz"}
        for part, values in (("image", image), ("label", mask)):
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / case[part])
        cases.append(case)
    values = {"labels": {"0": "background", "1": "lesion"}, "modality": {"0": "MRI"}, "training": cases}
    (folder / "dataset.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return folder
