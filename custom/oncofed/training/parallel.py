"""Data-parallel training on several GPUs of one site.

Each takes its share of every batch, and gradients are averaged.

The first process of the group is the one that others call; it starts its peers, commands them to train, and alone
scores and keeps the model. On machines without CUDA the group runs on CPU cores, through gloo.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oncofed.devices import why_unusable
from oncofed.errors import TrainingError
from oncofed.processes import end_with_parent

_WAIT_FOR_GRADIENTS = timedelta(minutes=5)
# Between two rounds the others wait for as long as a round of the slowest site takes.
_WAIT_FOR_COMMANDS = timedelta(days=7)
_LAST_WORDS_SECONDS = 2.0
_STOP, _TRAIN, _PREPARE = 0, 1, 2

# Runs in a worker process: from its group to the function that a command (steps, steps done before) calls. None instead
# of steps: only prepare.
Follower = Callable[["Group"], Callable[[int | None, int], object]]


class Group:
    """The processes that train together, seen from one of them.

    Args:
        rank: of this process, from 0.
        size: of the group.
        device: of this process.
        meeting: file through which the processes find each other.
    """

    def __init__(self, rank: int, size: int, device: torch.device, meeting: Path) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend, init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=_WAIT_FOR_GRADIENTS
        )
        # Commands go between CPUs: a GPU never waits for them.
        self._commands: Any = dist.new_group(backend="gloo", timeout=_WAIT_FOR_COMMANDS)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over the group."""
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, devices)

    def command(self, steps: int, done: int) -> None:
        """Command the others to take steps. For the first process."""
        self._tell(_TRAIN, steps, done)

    def command_preparing(self, done: int) -> None:
        """Command the other processes to prepare their data.

        Called by the first process. Then all ``meet``.
        """
        self._tell(_PREPARE, 0, done)

    def meet(self) -> None:
        """Wait for every process, without a limit.

        Large datasets take an hour to prepare.
        """
        dist.barrier(self._commands)

    def commands(self) -> Iterator[tuple[int | None, int]]:
        """Yield the first process's commands until it is done.

        Called by the other processes.
        """
        while True:
            kind, steps, done = self._tell(_STOP, 0, 0)
            if kind == _STOP:
                return
            yield None if kind == _PREPARE else steps, done

    def same_weights(self, network: nn.Module) -> None:
        """Give every process the weights of the first one."""
        with torch.no_grad():
            for values in network.state_dict().values():
                dist.broadcast(values, 0)

    def agree(self, stop: bool) -> bool:
        """Return whether the first process wants to stop."""
        flag = torch.tensor([int(stop)])
        dist.broadcast(flag, 0, group=self._commands)
        return bool(flag.item())

    def mean(self, value: Tensor) -> Tensor:
        """Return a scalar's mean over the group."""
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def add_up(self, values: list[Tensor]) -> None:
        """Replace tensors by their sums over the group."""
        for value in values:
            dist.all_reduce(value)

    def leave(self) -> None:
        """Leave the group; the first process releases the others."""
        if self.rank == 0:
            with contextlib.suppress(RuntimeError):  # they are gone already
                self._tell(_STOP, 0, 0)
        dist.destroy_process_group()

    def _tell(self, kind: int, steps: int, done: int) -> tuple[int, int, int]:
        message = torch.tensor([kind, steps, done])
        dist.broadcast(message, 0, group=self._commands)
        return int(message[0]), int(message[1]), int(message[2])


class WorkerProcesses:
    """Starts and ends the other processes of a group.

    The group of the calling process is ``group``.

    Args:
        follower: what each of them runs, of a module's top level or a picklable object.
        size: of the group, with the calling process.
        devices: "cuda" or "cpu".

    Raises:
        TrainingError: there are fewer GPUs than asked for.
    """

    def __init__(self, follower: Follower, size: int, devices: str) -> None:
        gpus = torch.cuda.device_count()
        if devices == "cuda" and gpus < size:
            raise TrainingError(
                f"the job asks for {size} GPUs at a site (resources.gpus), found {gpus}. Lower it or run it elsewhere."
                + (f" No GPU can be used: {reason}" if not gpus and (reason := why_unusable()) else "")
            )
        self._folder = tempfile.TemporaryDirectory(prefix="oncofed-group-")
        meeting = Path(self._folder.name) / "meeting"
        context = multiprocessing.get_context("spawn")
        self._processes = [
            context.Process(target=_follow, args=(follower, rank, size, devices, meeting), daemon=True)
            for rank in range(1, size)
        ]
        for process in self._processes:
            process.start()
        self.group = Group(0, size, _device(devices, 0), meeting)

    def require_alive(self) -> None:
        """Raise if a process has ended.

        Or ends within two seconds.
        """
        for process in self._processes:
            process.join(_LAST_WORDS_SECONDS)
        ended = [process.exitcode for process in self._processes if process.exitcode is not None]
        if ended:
            raise TrainingError(
                f"{len(ended)} of {len(self._processes) + 1} processes that train together ended (status {ended[0]}), "
                "perhaps for want of GPU memory: set training.micro_batch or training.recompute_activations"
            )

    def close(self) -> None:
        """Let the processes end."""
        self.group.leave()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _follow(follower: Follower, rank: int, size: int, devices: str, meeting: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: the first process ends the others
    end_with_parent()
    warnings.filterwarnings("ignore")
    group = Group(rank, size, _device(devices, rank), meeting)
    act = follower(group)
    for steps, done in group.commands():
        act(steps, done)
    group.leave()


def _device(devices: str, rank: int) -> torch.device:
    return torch.device(devices, rank) if devices == "cuda" else torch.device("cpu")
