"""Reads oncofed's own bundles without evaluating their expressions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.models.bundle import JOB_IN_BUNDLE, WEIGHTS_IN_BUNDLE
from oncofed.models.weights import Weights, digest_of, weights_of

_LARGEST_JOB = 1 << 20


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a MONAI bundle."""
    return (folder / "configs" / "metadata.json").is_file()


def read_own_bundle(folder: Path) -> tuple[JobSpec, Weights, str]:
    """Return a bundle's job, weights and digest (SHA-256).

    Nothing is evaluated: the job is read like ``job.yaml``, and the weights as plain tensors.

    Args:
        folder: of the bundle, with ``configs/``, ``models/`` and ``oncofed.json``.

    Raises:
        SpecError: the bundle is foreign or damaged, or its weights were changed.
    """
    job, digest = _read_job(folder)
    if job.model.code:
        raise SpecError(
            f"{folder}: its model needs the code of the pack {job.model.code[:12]}…, which no bundle holds. Name the "
            "folder of the run instead"
        )
    stored = _read_weights(folder / WEIGHTS_IN_BUNDLE)
    # A layer may be registered under two names; the first one counts.
    names = weights_of(job.plan().build_network())
    missing = sorted(set(names) - set(stored))
    if missing:
        raise SpecError(
            f"{folder / WEIGHTS_IN_BUNDLE}: the weights are not those of the job {job.name} ({missing[0]} is missing): "
            "take the bundle as it was written"
        )
    weights = {name: stored[name] for name in names}
    found = digest_of(weights, hashlib.sha256).hexdigest()
    if found != digest:
        raise SpecError(
            f"{folder / WEIGHTS_IN_BUNDLE}: the weights are not those that the bundle was written with ({found[:12]}…, "
            f"expected {digest[:12]}…): take the bundle as it was written"
        )
    return job, weights, found


def _read_job(folder: Path) -> tuple[JobSpec, str]:
    path = folder / JOB_IN_BUNDLE
    if not path.is_file():
        raise SpecError(
            f"{folder}: holds no {JOB_IN_BUNDLE}, so that its job is not known. Expected a bundle that oncofed wrote; "
            "another's can be trained on as model: {network: bundle}"
        )
    try:
        if path.stat().st_size > _LARGEST_JOB:
            raise ValueError("too large")
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest, values = record["weights"], record["job"]
        if not isinstance(digest, str):
            raise TypeError("no digest")
    except (OSError, ValueError, KeyError, TypeError):
        raise SpecError(f"{path}: cannot be read: it is cut off or changed. Copy the bundle again") from None
    try:
        return JobSpec.model_validate(values), digest
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the job"
        raise SpecError(
            f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}. Expected the job of a version of oncofed "
            "that this one knows"
        ) from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file. Copy the bundle again") from None
    except Exception:  # noqa: BLE001 - a broken or forbidden pickle may raise anything
        raise SpecError(
            f"{path}: cannot be read as tensors alone: it is cut off, or holds something else. Copy the bundle again"
        ) from None
