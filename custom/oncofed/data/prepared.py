"""Training cases that were prepared once: read, resampled and normalised, and held where they are at hand.

Each is kept on disk as safetensors under a key of its content and of all settings that made it, so that another run
with the same settings reads no image at all, and a change of either makes it anew. A file is written whole or not at
all: a process that is killed leaves nothing broken behind.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from oncofed.data import facts
from oncofed.data.cases import Case
from oncofed.data.inputs import Input, Prepared
from oncofed.processes import sharing_processes

CACHE_FOLDER = ".prepared"
# What a cache may take of the memory or disk that is free; of a GPU's memory, which the training itself needs, less.
_SHARE_OF_FREE = 0.8
_SHARE_OF_FREE_GPU = 0.4


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


def plan_cache(cases: Sequence[Case], input_: Input, device: torch.device) -> CachePlan:
    """Return where the prepared cases are held: as the job says, or on disk where they do not fit."""
    size = _estimate(cases, input_)
    folder = cases[0].folder / CACHE_FOLDER if cases and cases[0].folder else None
    note = f"{len(cases)} prepared cases" + (f", about {size / 1e6:,.0f} MB" if size is not None else "")
    if folder is not None and size is not None and size > _SHARE_OF_FREE * shutil.disk_usage(folder.parent).free:
        note += "; not kept on disk, which has too little space"
        folder = None
    held = _where(input_.spec.cache, size, device)
    if held == "disk" and folder is None:
        held = "memory"
    return CachePlan(size, held, folder, f"{note}, held in {'GPU memory' if held == 'gpu' else held}")


def _where(wanted: str, size: int | None, device: torch.device) -> str:
    """Return "gpu", "memory" or "disk": the first of these, from the wanted one on, that has room."""
    if wanted == "auto":
        wanted = "gpu" if size is not None else "memory"
    if wanted == "gpu" and device.type != "cuda":
        wanted = "memory"
    if wanted == "gpu" and size is not None and size > _free_on_gpu(device):
        wanted = "memory"
    if wanted == "memory" and size is not None and size > _SHARE_OF_FREE * psutil.virtual_memory().available:
        wanted = "disk"
    return wanted


def _free_on_gpu(device: torch.device) -> float:
    """Return the bytes that this process's cases may take of a GPU, which each of those that share it may too."""
    return _SHARE_OF_FREE_GPU / sharing_processes() * torch.cuda.mem_get_info(device)[0]


class PreparedCases(Dataset[Prepared]):
    """The prepared training cases of one site.

    Args:
        cases: to prepare.
        input_: how.
        device: of the training.
        progress: called with (cases prepared, cases in all).
    """

    def __init__(
        self,
        cases: Sequence[Case],
        input_: Input,
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.plan = plan_cache(cases, input_, device)
        self._cases = list(cases)
        self._device = device
        self._input = input_
        self._held: list[Prepared | None] = [None] * len(self._cases)
        every = prepare_all(self._cases, input_, self.plan.folder is not None)
        for done, (number, prepared) in enumerate(every, start=1):
            if self.plan.held != "disk":
                self._held[number] = self._placed(prepared)
            if progress:
                progress(done, len(cases))

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Prepared:
        held = self._held[index]
        return held if held is not None else prepare_one(self._cases[index], self._input)

    def _placed(self, prepared: Prepared) -> Prepared:
        if self.plan.held != "gpu":
            return prepared
        # What is only looked up on the way to a patch stays where looking it up does not make the GPU wait.
        return {k: v if k.startswith("centres.") else v.to(self._device) for k, v in prepared.items()}


def prepare_all(cases: Sequence[Case], input_: Input, keep: bool = True) -> Iterator[tuple[int, Prepared]]:
    """Yield each case's number with what was prepared of it, those on disk first.

    Args:
        cases: to prepare.
        input_: how.
        keep: on disk, for the next time.
    """
    settings = input_.settings
    missing = []
    for number, case in enumerate(cases):
        path = _path(case, settings) if keep else None
        found = _read(path) if path else None
        if found is None:
            missing.append((number, path))
        else:
            yield number, found
    if not missing:
        return
    for index, prepared in input_.prepare_all([cases[number] for number, _ in missing]):
        number, path = missing[index]
        if path:
            _write(path, prepared)
        yield number, prepared


def prepare_one(case: Case, input_: Input) -> Prepared:
    """Return what was or is now prepared of one case."""
    return next(prepare_all([case], input_))[1]


def _path(case: Case, settings: str) -> Path | None:
    if case.folder is None:
        return None
    known = case.entry.checksum if case.entry else None
    content = f"{known} {facts.stamp(case.files)} {case.label} {case.label_values} {case.instances} {case.spacing}"
    key = hashlib.sha256(f"{settings} {content}".encode()).hexdigest()[:40]
    return case.folder / CACHE_FOLDER / f"{key}.safetensors"


def _estimate(cases: Sequence[Case], input_: Input) -> int | None:
    sizes = [input_.size(case.entry) if case.entry else None for case in cases]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _read(path: Path) -> Prepared | None:
    if not path.is_file():
        return None
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError):
        path.unlink(missing_ok=True)
        return None


def _write(path: Path, prepared: Prepared) -> None:
    temporary = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False) as unfinished:
            temporary = Path(unfinished.name)
        save_file({name: values.contiguous() for name, values in prepared.items()}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError):
        # A full disk, or one that may not be written to, costs the cache and not the run.
        if temporary is not None:
            temporary.unlink(missing_ok=True)
