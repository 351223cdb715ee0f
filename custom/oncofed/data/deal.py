"""One public dataset dealt to several sites, to try a federation where only one folder is at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oncofed.data.cases import read_manifest
from oncofed.errors import DataError


def deal_to_sites(source: Path, out: Path, shares: Sequence[float], seed: int) -> dict[str, Path]:
    """Deal the patients of a folder in Decathlon layout to ``len(shares)`` sites and return site -> folder.

    The sites' folders hold links to the files, not copies.

    Args:
        source: the folder that is dealt.
        out: where each site gets a folder.
        shares: of the patients, by site; they need not add up to one.
        seed: of the deal.

    Raises:
        DataError: there are too few cases to give each site three.
    """
    manifest = read_manifest(source)
    entries = [entry for entry in manifest["training"] if isinstance(entry, dict)]
    by_patient: dict[str, list[dict[str, str]]] = {}
    for entry in entries:
        by_patient.setdefault(str(entry.get("patient", entry.get("image"))), []).append(entry)
    patients = sorted(by_patient)
    np.random.default_rng(seed).shuffle(patients)
    bounds = np.rint(np.cumsum(shares) / np.sum(shares) * len(patients)).astype(int)
    parts = np.split(np.asarray(patients, dtype=object), bounds[:-1])
    if min(map(len, parts)) < 3:
        raise DataError(
            f"{source}: {len(patients)} patients are too few for {len(parts)} sites of uneven size; "
            "expected at least 3 patients for the smallest."
        )
    folders = {}
    for number, part in enumerate(parts, start=1):
        site = f"site-{number}"
        folder = folders[site] = out / site
        dealt = [entry for patient in part for entry in by_patient[patient]]
        _link(source, folder, dealt)
        (folder / "dataset.json").write_text(json.dumps({**manifest, "training": dealt, "numTraining": len(dealt)}))
    return folders


def _link(source: Path, folder: Path, entries: list[dict[str, str]]) -> None:
    for entry in entries:
        for key in ("image", "label"):
            link = folder / entry[key]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / entry[key]).resolve())
