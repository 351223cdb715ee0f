"""The processes that extract, and what each of them is doing."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import torch

from oncofed.devices import training_device
from oncofed.errors import TrainingError
from oncofed.gpus import read_gpus
from oncofed.processes import block_interrupts, ready_context
from oncofed.tasks.encoder import EncoderSpec
from oncofed.tasks.extraction import worker
from oncofed.tasks.extraction.messages import Failed, Message, Progress, Ready, SetAside, SlideJob, Wanted
from oncofed.tasks.extraction.worker import Place

_MOST_DEATHS = 2  # of processes at work on a slide, the second time on it alone
_BROKE_ITS_PROCESS = (
    "the process that read it ended abruptly, twice: it needs more memory than there is, or is malformed. Copy it again"
)


def find_places(device: str | None, workers: int | None) -> list[Place]:
    """Return where to compute: each GPU, or the CPU.

    Args:
        device: "cpu", "cuda", or GPUs by number ("cuda:0,cuda:2"); None: what the machine has.
        workers: processes on a CPU, which share its cores; None: one, which uses all of them.

    Raises:
        TrainingError: a GPU is named that is not there.
        FederationError: the driver does not work.
    """
    cores = os.cpu_count() or 1
    is_left_alone = device == "cpu" or (device is None and not torch.cuda.is_available())
    gpus = [] if is_left_alone else [str(gpu.device) for gpu in read_gpus()]
    if device and device.startswith("cuda:"):
        wanted = [part.strip().removeprefix("cuda:") for part in device.split(",")]
        if missing := [number for number in wanted if not number.isdigit() or int(number) >= len(gpus)]:
            raise TrainingError(f"--device {device}: there is no GPU {missing[0]}, this machine has {len(gpus)}")
        gpus = [gpus[int(number)] for number in wanted]
    elif device not in {None, "cpu", "cuda"}:
        raise TrainingError(f"--device {device}: expected cpu, cuda, or GPUs such as cuda:0,cuda:1")
    if gpus:
        return [Place("cuda", gpu, max(1, cores // len(gpus))) for gpu in gpus]
    training_device("cpu" if device is None else device)  # tells why there is no GPU
    count = workers or 1
    return [Place("cpu", None, max(1, cores // count))] * count


@dataclass
class _Process:
    """One process: its end of the line, and the slides that it has in hand."""

    process: BaseProcess
    connection: Connection
    place: Place
    jobs: dict[int, SlideJob] = field(default_factory=dict)
    is_ready: bool = False
    waits: bool = False


class Pool:
    """Deals slides to processes; a context manager.

    A process that ends abruptly costs the slide that broke it, after a second try of its own.

    Args:
        encoder: for all processes.
        out: folder for the files.
        places: one process each.
    """

    def __init__(self, encoder: EncoderSpec, out: Path, places: Sequence[Place]) -> None:
        self._encoder, self._out = encoder, out
        self._processes: list[_Process] = []
        self._deaths: Counter[int] = Counter()
        self._places = places
        self._context = ready_context(forks=all(place.device == "cpu" for place in places))

    def __enter__(self) -> Pool:
        for place in self._places:
            self._start(place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes: they wait for work, or what they made so far is on the disk."""
        for each in self._processes:
            each.process.kill()
            each.process.join()
            each.connection.close()

    def ready(self) -> Ready:
        """Wait for the first process.

        Raises:
            TrainingError: the encoder cannot be used, or processes cannot be started.
        """
        first = self._processes[0]
        message = self._receive(first)
        if isinstance(message, Failed):
            raise TrainingError(message.reason)
        if not isinstance(message, Ready):
            raise _not_started()
        first.is_ready = True
        return message

    def work(self, jobs: Sequence[SlideJob]) -> Iterator[Message]:
        """Yield what the processes report until all slides are done.

        Args:
            jobs: the first ones are dealt first.

        Raises:
            TrainingError: a process cannot go on, for a reason that concerns all slides.
        """
        waiting = deque(jobs)
        while waiting or any(each.jobs for each in self._processes):
            for each in self._processes:
                # One with nothing in hand waits: the slides of one that dies may be put back.
                if each.waits and (waiting or each.jobs):
                    self._deal(each, waiting.popleft() if waiting else None)
            lines = {each.connection: each for each in self._processes}
            for connection in wait(list(lines)):
                each = lines[connection]  # type: ignore[index]
                message = self._receive(each)
                if message is None:
                    yield from self._bury(each, waiting)
                elif isinstance(message, Failed):
                    raise TrainingError(message.reason)
                elif isinstance(message, Ready):
                    each.is_ready = True
                elif isinstance(message, Wanted):
                    each.waits = True
                else:
                    if not isinstance(message, Progress):
                        each.jobs.pop(message.number, None)
                    yield message

    def _start(self, place: Place) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined] # of all contexts
            target=worker.run, args=(theirs, self._encoder, self._out, place), daemon=True
        )
        with block_interrupts():
            process.start()
        theirs.close()  # so that the end of the process is the end of the line
        self._processes.append(_Process(process, ours, place))

    def _deal(self, each: _Process, job: SlideJob | None) -> None:
        each.waits = False
        if job:
            each.jobs[job.number] = job
        with contextlib.suppress(OSError):  # it has died, which reading from it tells
            each.connection.send(job)

    def _receive(self, each: _Process) -> Message | None:
        """Return the next message; None: the process has ended."""
        try:
            message: Message = each.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def _bury(self, dead: _Process, waiting: deque[SlideJob]) -> Iterator[Message]:
        """Put a dead process's slides back, and start another one.

        Raises:
            TrainingError: it died before it had loaded the encoder.
        """
        self._processes.remove(dead)
        dead.connection.close()
        dead.process.join()
        if not dead.is_ready:
            raise _not_started()
        for number, job in dead.jobs.items():
            self._deaths[number] += 1
            if self._deaths[number] >= _MOST_DEATHS:
                yield SetAside(number, _BROKE_ITS_PROCESS)
            else:
                waiting.appendleft(replace(job, alone=True))
        self._start(dead.place)


def _not_started() -> TrainingError:
    return TrainingError(
        "a process that extracts features ended before it had loaded the encoder, perhaps for want of memory. Run the "
        "command again, with fewer processes if need be: --workers 1"
    )
