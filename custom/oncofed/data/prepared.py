"""Preprocessed training cases, cached on GPU, in memory or on disk.

Each is kept on disk as safetensors under a key of its content and of all settings that made it, so that another run
with the same settings reads no image at all, and a change of either makes it anew. A file is written whole or not at
all: a process that is killed leaves nothing broken behind.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from oncofed.data import case_facts
from oncofed.data.case import Case
from oncofed.data.inputs import LOOKED_UP, Preparation, Prepared
from oncofed.devices import free_memory, is_out_of_memory
from oncofed.errors import DataError, UnreadableError
from oncofed.processes import sharing_processes

_LOG = logging.getLogger(__name__)

CACHE_FOLDER = ".prepared"
# What a cache may take of the memory or disk that is free; of a GPU's memory, which the training itself needs, less.
_SHARE_OF_FREE = 0.8
_SHARE_OF_FREE_GPU = 0.4
# Preparing threads on few cores: one reads while another computes.
_FEWEST_THREADS = 2
# Copies of a case in memory while it is prepared: read, resampled, normalised, prepared.
_COPIES = 4


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


def plan_cache(cases: Sequence[Case], how: Preparation, device: torch.device, promised: int = 0) -> CachePlan:
    """Return the cache plan: as the job states, or disk.

    Args:
        cases: to prepare.
        how: they are prepared.
        device: that uses them.
        promised: bytes of memory and of the disk that another cache has yet to fill.
    """
    size = _estimate(cases, how)
    folder = cases[0].folder / CACHE_FOLDER if cases and cases[0].folder else None
    note = f"{len(cases)} prepared cases" + (f", about {size / 1e6:,.0f} MB" if size is not None else "")
    if folder is not None and size is not None:
        free = _SHARE_OF_FREE * shutil.disk_usage(folder.parent).free
        if size > free - promised:
            note += "; not kept on disk, which has too little space"
            folder = None
    held = _where(how.spec.cache, size, device, promised)
    if held == "disk" and folder is None:
        held = "memory"
    return CachePlan(
        bytes=size, held=held, folder=folder, note=f"{note}, held in {'GPU memory' if held == 'gpu' else held}"
    )


def _where(wanted: str, size: int | None, device: torch.device, promised: int) -> str:
    """Return the cache that has room: "gpu", "memory" or "disk".

    The first of these, from the wanted one on.
    """
    if wanted == "auto":
        wanted = "gpu" if size is not None else "memory"
    if wanted == "gpu" and device.type != "cuda":
        wanted = "memory"
    if wanted == "gpu" and size is not None and size > _free_on_gpu(device):
        wanted = "memory"
    if wanted == "memory" and size is not None:
        free = _SHARE_OF_FREE * psutil.virtual_memory().available
        wanted = "disk" if size > free - promised else "memory"
    return wanted


def _free_on_gpu(device: torch.device) -> float:
    """Return this process's share of a GPU's free memory in bytes."""
    return _SHARE_OF_FREE_GPU / sharing_processes() * torch.cuda.mem_get_info(device)[0]


class PreparedCases(Dataset[Prepared]):
    """Prepared cases of one site.

    Each is prepared at its first use, or shortly before (see ``ahead``).

    Args:
        cases: to prepare.
        how: they are prepared.
        device: that uses them.
        progress: called with (cases prepared, cases in all) where all are prepared at the start.
        plan: where they are held; None: as ``plan_cache`` finds.

    Raises:
        UnreadableError: a case that could be read at first cannot be read now; raised where it is wanted.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        how: Preparation,
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
        plan: CachePlan | None = None,
    ) -> None:
        self.plan = plan or plan_cache(cases, how, device)
        self._cases = list(cases)
        self._numbers = {case: number for number, case in enumerate(self._cases)}
        self._device = device
        self._how = how
        self._held: list[Prepared | None] = [None] * len(self._cases)
        self._missing = len(self._cases)
        self._ahead = _Ahead(self._prepared)
        if how.costly:
            every = prepare_all(self._cases, how, self.plan.folder is not None, self._on_disk)
            for done, (number, prepared) in enumerate(every, start=1):
                self._keep(number, prepared)
                if progress:
                    progress(done, len(cases))

    def __len__(self) -> int:
        return len(self._cases)

    def __contains__(self, case: object) -> bool:
        return case in self._numbers

    def __getitem__(self, index: int) -> Prepared:
        held = self._held[index]
        if held is not None:
            return held
        return self._keep(index, self._ahead.take(index))

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases, in the order of their indices."""
        return tuple(self._cases)

    @property
    def promised(self) -> int:
        """Bytes of memory that unprepared cases will take."""
        if self.plan.held != "memory" or not self._cases:
            return 0
        return (self.plan.bytes or 0) * self._missing // len(self._cases)

    def of(self, case: Case) -> Prepared:
        """Return a prepared case."""
        return self[self._numbers[case]]

    def ahead(self, indices: Sequence[int]) -> None:
        """Prepare coming cases in threads.

        Work on cases that are not wanted any more is dropped.

        Args:
            indices: of those cases, in the order in which they are wanted. Each takes memory until it is.
        """
        if self._missing:
            wanted = [index for index in indices if self._held[index] is None]
            self._ahead.want(wanted, _threads(self._how.size(self._cases[wanted[0]])) if wanted else 0)

    def ahead_of(self, cases: Sequence[Case]) -> None:
        """Do as ``ahead`` for cases instead of their indices."""
        self.ahead([self._numbers[case] for case in cases])

    def close(self) -> None:
        """Stop preparing ahead; cached cases stay."""
        self._ahead.close()

    @property
    def _on_disk(self) -> bool:
        return self.plan.held == "disk"

    def _prepared(self, index: int) -> Prepared:
        case = self._cases[index]
        try:
            return prepare_one(case, self._how, self.plan.folder is not None, self._on_disk)
        except Exception as error:  # MONAI wraps what a reader raises
            cause = error.__cause__ or error
            if not isinstance(cause, (DataError, OSError, MemoryError)):
                raise
            raise UnreadableError(
                f"{case.name}: {case_facts.reason_of(cause)}; it could be read before. See that its folder is "
                "reachable, or register the dataset again"
            ) from None

    def _keep(self, index: int, prepared: Prepared) -> Prepared:
        if self._on_disk:
            return prepared
        if self.plan.held == "gpu":
            prepared = self._placed(prepared)
        self._held[index] = prepared
        self._missing -= 1
        if not self._missing:
            self.close()
        return prepared

    def _placed(self, prepared: Prepared) -> Prepared:
        """Return a case on the GPU, or as it is once that is full."""
        try:
            # What is only looked up on the way to a sample stays where looking it up does not make the GPU wait.
            return {k: v if k.startswith(LOOKED_UP) else v.to(self._device) for k, v in prepared.items()}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        held = sum(case is not None for case in self._held)
        _LOG.warning("the GPU has room for %d of %d prepared cases: the others are held in memory", held, len(self))
        self.plan = replace(self.plan, held="memory")
        return prepared


class _Ahead:
    """Prepares cases by threads before they are wanted.

    Only as many are given to threads as there are of them: the process ends, or turns to others, once those are done.

    Args:
        prepare: what a case's number becomes.
    """

    def __init__(self, prepare: Callable[[int], Prepared]) -> None:
        self._prepare = prepare
        self._lock = threading.RLock()
        self._wanted: deque[int] = deque()
        self._under_way: dict[int, Future[Prepared]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._threads = self._busy = 0

    def want(self, indices: Sequence[int], threads: int) -> None:
        """Prepare these cases next; drop work on others.

        Args:
            indices: of cases, in order.
            threads: that prepare.
        """
        with self._lock:
            for stale in self._under_way.keys() - set(indices):
                self._under_way.pop(stale).cancel()
            self._wanted = deque(index for index in indices if index not in self._under_way)
            if self._wanted and self._pool is None:
                # Each case is one thread's: nested threads would multiply.
                self._pool = ThreadPoolExecutor(threads, "prepare", torch.set_num_threads, (1,))
                self._threads = threads
        self._start()

    def take(self, index: int) -> Prepared:
        """Return a case from its thread, or prepare it here."""
        with self._lock:
            future = self._under_way.pop(index, None)
            if future is None and index in self._wanted:
                self._wanted.remove(index)
        return future.result() if future else self._prepare(index)

    def close(self) -> None:
        """Begin nothing more."""
        with self._lock:
            self._wanted.clear()
            self._under_way.clear()
            if self._pool:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _start(self) -> None:
        with self._lock:
            while self._pool and self._wanted and self._busy < self._threads:
                index = self._wanted.popleft()
                try:
                    future = self._pool.submit(self._prepare, index)
                except RuntimeError:  # the process ends
                    return
                self._busy += 1
                self._under_way[index] = future
                future.add_done_callback(self._done)

    def _done(self, _: Future[Prepared]) -> None:
        with self._lock:
            self._busy -= 1
        self._start()


def passing(cases: Sequence[Case]) -> CachePlan:
    """Return the plan that caches nothing: cases are used once."""
    return CachePlan(bytes=None, held="disk", folder=None, note=f"{len(cases)} prepared cases, not kept")


def prepare_all(
    cases: Sequence[Case], how: Preparation, keep: bool = True, mapped: bool = False
) -> Iterator[tuple[int, Prepared]]:
    """Yield each case's number and prepared case, cached ones first.

    Args:
        cases: to prepare.
        how: they are prepared.
        keep: on disk, for the next time.
        mapped: what is kept is left in its file, whose pages the system drops where memory is short. A process may map
            some ten thousand files.
    """
    missing = []
    for number, case in enumerate(cases):
        path = _path(case, how) if keep else None
        found = _read(path, mapped) if path else None
        if found is None:
            missing.append((number, path))
        else:
            yield number, found | how.beside_image(case)
    if not missing:
        return
    for index, prepared in how.prepare_all([cases[number] for number, _ in missing]):
        number, path = missing[index]
        if path and prepared:
            _write(path, prepared)
        found = (_read(path, mapped) if path and mapped else None) or prepared
        yield number, found | how.beside_image(cases[number])


def prepare_one(case: Case, how: Preparation, keep: bool = True, mapped: bool = False) -> Prepared:
    """Return one prepared case; see ``prepare_all``."""
    return next(prepare_all([case], how, keep, mapped))[1]


def _threads(size: int | None) -> int:
    """Return the number of preparing threads.

    Half of this process's cores, as far as memory lasts.
    """
    cores = max(_FEWEST_THREADS, torch.get_num_threads() // 2)
    if size is None:
        return cores
    room = psutil.virtual_memory().available // 2
    return max(1, min(cores, room // max(_COPIES * size, 1)))


def _path(case: Case, how: Preparation) -> Path | None:
    if case.folder is None:
        return None
    content = " ".join(_content(part) for part in case.slides)
    key = hashlib.sha256(f"{how.settings_of(case)} {content}".encode()).hexdigest()[:40]
    return case.folder / CACHE_FOLDER / f"{key}.safetensors"


def _content(case: Case) -> str:
    known = case.entry.checksum if case.entry else None
    content = f"{known} {case_facts.stamp(case.files)} {case.label} {case.label_values} {case.instances} {case.spacing}"
    content += f" {case.slide_colours}" if case.slide_colours else ""
    content += f" {case.label_names}" if case.label_names and isinstance(case.label, Path) else ""
    return f"{content} {case.reading}" + (f" {case.boxes}" if case.boxes is not None else "")


def _estimate(cases: Sequence[Case], how: Preparation) -> int | None:
    sizes = [how.size(case) for case in cases]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _read(path: Path, mapped: bool) -> Prepared | None:
    if not path.is_file():
        return None
    try:
        found = load_file(path)
        return dict(found) if mapped else {name: values.clone() for name, values in found.items()}
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
