"""Further files of a model's bundle, from its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oncofed.artifacts.kept_job import BESIDE_MODEL
from oncofed.artifacts.provenance import PROVENANCE_FILE, read_provenance
from oncofed.atomic import write_whole
from oncofed.models.bundle import JOB_IN_BUNDLE
from oncofed.models.bundle.targets import use_temperatures, use_thresholds
from oncofed.tasks.calibration import read_calibration

_INFERENCE = Path("configs", "inference.json")


def complete_bundle(bundle: Path, folders: Sequence[Path]) -> None:
    """Copy a model's small files into its bundle.

    These are its calibration, whose temperatures and thresholds become those of ``configs/inference.json``; its
    training profile; and its provenance, if it is of the bundle's weights.

    Args:
        bundle: of the model; nothing is copied where it is missing.
        folders: searched in this order for each file.

    Raises:
        SpecError: a file is broken.
    """
    if not bundle.is_dir():
        return
    for name in (*sorted(BESIDE_MODEL), PROVENANCE_FILE):
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found and (name != PROVENANCE_FILE or _is_of(bundle, found)):
            write_whole(bundle / name, found.read_bytes())
    calibration = read_calibration(bundle)
    inference: dict[str, Any] = json.loads((bundle / _INFERENCE).read_text(encoding="utf-8"))
    if not calibration:
        return
    if calibration.temperature is not None and "temperature" in inference:
        inference["temperature"] = calibration.temperature
    use_thresholds(inference, calibration.thresholds)
    use_temperatures(inference, calibration.temperatures)
    if calibration.temperature is not None or calibration.thresholds or calibration.temperatures:
        write_whole(bundle / _INFERENCE, json.dumps(inference, indent=2, ensure_ascii=False) + "\n")


def _is_of(bundle: Path, provenance: Path) -> bool:
    """Return whether a provenance is of a bundle's weights."""
    job = json.loads((bundle / JOB_IN_BUNDLE).read_text(encoding="utf-8"))
    return bool(read_provenance(provenance)["provenance"].get("model") == job["weights"])
