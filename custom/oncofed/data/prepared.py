"""Training cases that were prepared once: read, resampled and normalised, and held where they are at hand.

Each is kept on disk as safetensors under a key of its content and of all settings that made it, so that another run
with the same settings reads no image at all, and a change of either makes it anew. A file is written whole or not at
all: a process that is killed leaves nothing broken behind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from oncofed.data import facts
from oncofed.data.cases import Case
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_pair

CACHE_FOLDER = ".prepared"
# Raised when what a transform does changes though its settings do not.
_VERSION = 1
_INDICES = "label_cls_indices"
# What a cache may take of the memory or disk that is free.
_SHARE_OF_FREE = 0.8
_INDEX_BYTES = 8 * 10_000

Prepared = dict[str, Any]


@dataclass(frozen=True)
class CachePlan:
    """How large a cache will be, and where it fits.

    Attributes:
        bytes: of all cases together, estimated from their sizes before any is read; None where they are not known.
        held: "memory", "gpu" or "disk".
        folder: on disk; None: not kept there.
        note: for people.
    """

    bytes: int | None
    held: str
    folder: Path | None
    note: str


def plan_cache(cases: Sequence[Case], spec: DataSpec, classes: int, device: torch.device) -> CachePlan:
    """Return where the prepared cases are held: as the job says, or on disk where they do not fit."""
    size = _estimate(cases, spec, classes)
    folder = cases[0].folder / CACHE_FOLDER if cases and cases[0].folder else None
    note = f"{len(cases)} prepared cases" + (f", about {size / 1e6:,.0f} MB" if size is not None else "")
    if folder is not None and size is not None and size > _SHARE_OF_FREE * shutil.disk_usage(folder.parent).free:
        note += "; not kept on disk, which has too little space"
        folder = None
    held = spec.cache
    if held == "gpu" and device.type != "cuda":
        held = "memory"
    if held == "memory" and size is not None and size > _SHARE_OF_FREE * psutil.virtual_memory().available:
        held = "disk"
    if held == "gpu" and size is not None and size > _SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]:
        held = "disk"
    if held == "disk" and folder is None:
        held = "memory"
    return CachePlan(size, held, folder, f"{note}, held in {'GPU memory' if held == 'gpu' else held}")


class PreparedCases(Dataset[Prepared]):
    """The prepared training cases of one site.

    Args:
        cases: to prepare.
        spec: how.
        classes: classes with background.
        device: of the training.
        progress: called with (cases prepared, cases in all).
    """

    def __init__(
        self,
        cases: Sequence[Case],
        spec: DataSpec,
        classes: int,
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.plan = plan_cache(cases, spec, classes, device)
        self._cases = list(cases)
        self._device = device
        self._load = load_pair(spec, classes)
        self._settings = json.dumps(
            [_VERSION, monai.__version__, classes, *(_relevant(spec)[k] for k in sorted(_relevant(spec)))], default=str
        )
        done = 0

        def prepare(case: Case) -> Prepared | None:
            nonlocal done
            prepared = self._prepare(case)
            done += 1
            if progress:
                progress(done, len(cases))
            return prepared if self.plan.held != "disk" else None

        with ThreadPoolExecutor(2) as pool:
            self._held = list(pool.map(prepare, self._cases))

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Prepared:
        held = self._held[index]
        return held if held is not None else self._prepare(self._cases[index])

    def _prepare(self, case: Case) -> Prepared:
        path = self._path(case)
        prepared = _read(path) if path else None
        if prepared is None:
            prepared = dict(self._load(case))
            prepared = {"image": prepared["image"], "label": prepared["label"], _INDICES: prepared[_INDICES]}
            if path:
                _write(path, prepared)
        if self.plan.held == "gpu":
            prepared = {k: v.to(self._device) if isinstance(v, Tensor) else v for k, v in prepared.items()}
        return prepared

    def _path(self, case: Case) -> Path | None:
        if self.plan.folder is None or case.folder is None:
            return None
        return case.folder / CACHE_FOLDER / f"{self._key(case)}.safetensors"

    def _key(self, case: Case) -> str:
        known = case.entry.checksum if case.entry else None
        content = (
            f"{known} {facts.stamp([*case.images, case.label])} {case.label_values} {case.instances} {case.spacing}"
        )
        return hashlib.sha256(f"{self._settings} {content}".encode()).hexdigest()[:40]


def _relevant(spec: DataSpec) -> dict[str, Any]:
    """Return the settings that change what is prepared."""
    return {k: getattr(spec, k) for k in ("modality", "channels", "background", "orientation", "spacing", "patch")}


def _estimate(cases: Sequence[Case], spec: DataSpec, classes: int) -> int | None:
    total = 0
    for case in cases:
        entry = case.entry
        if entry is None or not entry.shape:
            return None
        shape = np.array(entry.shape, dtype=np.float64)
        if spec.spacing and entry.spacing:
            shape = shape * np.array(entry.spacing) / np.array(spec.spacing)
        voxels = float(np.prod(np.maximum(np.ceil(shape), spec.patch[: len(shape)])))
        total += int(voxels * (4 * len(spec.channels) + 1)) + classes * _INDEX_BYTES
    return total


def _read(path: Path) -> Prepared | None:
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        path.unlink(missing_ok=True)
        return None
    count = sum(name.startswith(_INDICES) for name in tensors)
    indices = [tensors[f"{_INDICES}.{n}"].numpy() for n in range(count)]
    return {"image": tensors["image"], "label": tensors["label"], _INDICES: indices}


def _write(path: Path, prepared: Prepared) -> None:
    tensors = {"image": prepared["image"].contiguous(), "label": prepared["label"].contiguous()}
    tensors |= {f"{_INDICES}.{n}": torch.as_tensor(i).contiguous() for n, i in enumerate(prepared[_INDICES])}
    temporary = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False) as unfinished:
            temporary = Path(unfinished.name)
        save_file(tensors, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError):
        # A full disk, or one that may not be written to, costs the cache and not the run.
        if temporary is not None:
            temporary.unlink(missing_ok=True)
