"""A training's state, kept for a later process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oncofed.errors import StateError
from oncofed.models.weights import load_weights, weights_of
from oncofed.training.averaging import WeightAverage
from oncofed.training.batch_gradients import BatchGradients
from oncofed.training.checkpoint import (
    Tensors,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    without_prefix,
)
from oncofed.training.gradient_hook import GradientHook
from oncofed.training.loss_sum import LossSum
from oncofed.training.source import Source
from oncofed.training.writing import CheckpointWriter

_LOG = logging.getLogger(__name__)


class Resumption:
    """Keeps a training's state on disk, and resumes it.

    A later process continues to the same bits, also within a round; so does a retry of a failed round.

    Args:
        path: of the checkpoint; None: nothing is kept on disk.
        identity: of job, site and cases; a checkpoint of another is refused.
        network: that is trained.
        average: of its weights over steps.
        optimizer: of its parameters.
        gradients: whose loss scale and micro-batch are kept.
        device: on which it trains.

    Attributes:
        loss_sum: of the round's steps, with those of earlier processes.
        unfinished: the round in which an earlier process ended, or which failed.
        not_kept: why the last checkpoint could not be written; None if it was.
    """

    def __init__(
        self,
        *,
        path: Path | None,
        identity: str,
        network: nn.Module,
        average: WeightAverage,
        optimizer: torch.optim.Optimizer,
        gradients: BatchGradients,
        device: torch.device,
    ) -> None:
        self._path, self._identity, self._device = path, identity, device
        self._network, self._optimizer, self._gradients = network, optimizer, gradients
        self._average = average
        self.writer = CheckpointWriter(path, device.type == "cuda") if path else None
        self.loss_sum = LossSum()
        self.unfinished: str | None = None
        self.not_kept: str | None = None
        self._round: str | None = None
        self._batches_state: Tensors | None = None
        self._hook_state: Tensors = {}

    def begin_round(self, name: str | None, hook: GradientHook | None, batches: Source) -> None:
        """Begin a round, or resume the unfinished one.

        Args:
            name: of the round; None: it is no part of any.
            hook: of the gradients, after its ``start``.
            batches: of the run.
        """
        if name is None or name != self.unfinished:
            self.loss_sum = LossSum()
            batches.begin_round()
        elif hook:
            hook.restore_round(self._hook_state)
        self._round, self.unfinished, self._hook_state = name, None, {}

    def abandon_round(self, hook: GradientHook | None) -> None:
        """Remember a failed round, so that a retry resumes it."""
        self.unfinished = self._round
        self._hook_state = dict(hook.round_state) if hook else {}
        self.settle()

    def keep(self, steps_done: int, batches: Source, hook: GradientHook | None) -> None:
        """Write the whole state.

        From a GPU a thread writes, while training goes on.
        """
        self.settle()
        if self.writer:
            self._note_failure(partial(self.writer.write, *self._state(steps_done, batches, hook)))

    def settle(self) -> None:
        """Wait until the last checkpoint is on disk."""
        if self.writer and self.writer.writing:
            self._note_failure(self.writer.wait)

    def restore(self) -> int:
        """Restore an earlier process's state and return its steps.

        Raises:
            StateError: the checkpoint is broken, or of another training.
        """
        if not self._path or not self._path.is_file():
            return 0
        tensors, facts = read_checkpoint(self._path)
        if facts.get("of") != self._identity:
            raise StateError(
                f"{self._path}: the checkpoint is of another job, site or network. Delete it to start from the "
                "beginning."
            )
        load_weights(self._network, without_prefix(tensors, "network"))
        self._average.restore(without_prefix(tensors, "average"))
        restore_optimizer(self._optimizer, without_prefix(tensors, "optimizer"))
        self._gradients.scaler.load_state_dict(facts["scaler"])
        self._gradients.micro_batch = facts["micro_batch"]
        self.unfinished, self.loss_sum = facts["turn"], LossSum(**facts["tally"])
        torch.set_rng_state(tensors["random.cpu"])
        if self._device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self._device)
        self._batches_state, self._hook_state = without_prefix(tensors, "batches"), without_prefix(tensors, "turn")
        return int(facts["steps_done"])

    def restore_batches(self, batches: Source) -> None:
        """Move a new stream to where the earlier process's was."""
        if self._batches_state is not None:
            batches.restore(self._batches_state)
            self._batches_state = None

    def _state(self, steps_done: int, batches: Source, hook: GradientHook | None) -> tuple[Tensors, dict[str, Any]]:
        tensors = {f"network.{name}": value for name, value in weights_of(self._network).items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self._optimizer).items()}
        tensors |= {f"batches.{name}": value for name, value in batches.state().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        if hook:
            tensors |= {f"turn.{name}": value for name, value in hook.round_state.items()}
        return tensors, {
            "of": self._identity,
            "steps_done": steps_done,
            "micro_batch": self._gradients.micro_batch,
            "turn": self._round,
            "tally": self.loss_sum.facts,
            "scaler": self._gradients.scaler.state_dict(),
        }

    def _note_failure(self, write: Callable[[], None]) -> None:
        """Write; training goes on if that fails.

        A full disk costs the progress that a later crash would lose, not the training.
        """
        try:
            write()
            self.not_kept = None
        except OSError as error:
            self.not_kept = error.strerror or str(error)
            _LOG.warning("the training's state could not be kept (%s): free some space", self.not_kept)
