"""A batch's gradients, within the memory of the device."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oncofed.data.augment import Batch
from oncofed.devices import free_memory, inference_type, is_out_of_memory
from oncofed.errors import TrainingError
from oncofed.packs.extensions import Loss
from oncofed.tasks import Task
from oncofed.training.compiling import Compiling, Form, Situation, in_form
from oncofed.training.determinism import alerts_told
from oncofed.training.optimizer import StepScaler
from oncofed.training.parallel import Group
from oncofed.training.plan import Plan
from oncofed.training.profile_ranges import profile_range
from oncofed.training.settings import TrainingSpec

_LOG = logging.getLogger(__name__)


class BatchGradients:
    """Computes a batch's gradients: forward pass, loss, backward pass.

    In parts if memory is short, in the form that ``Compiling`` chooses, and in the device's precision.

    Args:
        plan: what to train.
        task: whose loss it is.
        network: on ``device``.
        optimizer: of its parameters.
        device: where to train.
        layout: memory format of images.
        group: the processes that average each batch's gradients; None: this one alone.
        samples: of a batch.
        loss: of the job's pack, in place of the task's.
        cache: folder for compiled kernels; None: the user's.

    Attributes:
        forward: the network in its present form.
        micro_batch: samples in one pass.
        precision: in which the network runs.
        scaler: of the loss; it skips steps whose gradients are not finite.
        compiling: chooses the form of a step.
        teacher: whose output each batch gets as ``teacher``; None: no one's.
    """

    teacher: nn.Module | None = None

    def __init__(
        self,
        *,
        plan: Plan,
        task: Task[Any],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        layout: torch.memory_format,
        group: Group | None,
        samples: int,
        loss: Loss | None,
        cache: Path | None,
    ) -> None:
        self._task, self._pack_loss, self._device, self._optimizer = task, loss, device, optimizer
        self._deterministic = plan.training.deterministic
        self.layout = layout
        self._in_group = group is not None
        self._wrapped = group.wrap(network) if group else network
        self._batch_size, self._least = samples, plan.task.least_batch
        self.micro_batch = min(plan.training.micro_batch or samples, samples)
        self.precision = training_precision(plan.training, device)
        if plan.privacy.differential_privacy and self.precision is torch.float16:
            self.precision = torch.float32  # a step left out for its overflow would tell of its patients
        self.scaler = StepScaler(device.type, self.precision)
        self.use("eager")
        situation = Situation(
            wanted=plan.training.compile,
            deterministic=self._deterministic,
            total_steps=plan.total_steps,
            device=device,
            replayable=group is None
            and plan.model.kind in ("dense", "image")
            and not plan.training.recompute_activations,
            cache=cache,
            agree=group.agree if group else None,
        )
        self.compiling = Compiling(situation, network, self.use)
        # Operations without a deterministic form are reported once, in the first step.
        self._watch = alerts_told if self._deterministic else contextlib.nullcontext

    def use(self, form: Form) -> None:
        """Compute the next batches in another form; see ``Compiling``."""
        self.forward: Callable[..., Tensor] = in_form(self._wrapped, form, self._deterministic)
        # A compiler may not know a pack's loss. The loss's arguments are no part of a graph.
        plainer: Form = "eager" if not self._task.compiles_loss else "compiled" if form == "replayed" else form
        self._loss: Loss = self._pack_loss or in_form(self._task.loss, plainer, self._deterministic)

    def hold_teacher(self, network: nn.Module, build: Callable[[], nn.Module]) -> None:
        """Hold a network's present weights as the teacher of the next batches.

        Args:
            network: whose weights they are.
            build: returns another of its kind, on the same device.
        """
        if self.teacher is None:
            self.teacher = build().requires_grad_(False).eval()
        self.teacher.load_state_dict(network.state_dict())

    def compute(self, batch: Batch) -> Tensor:
        """Compute a batch's gradients, in place; return its mean loss.

        Returns:
            The loss, on the device: no step waits for the host.

        Raises:
            TrainingError: one sample alone does not fit into memory, or a group's GPU ran out of it.
        """
        watch, self._watch = self._watch, contextlib.nullcontext
        with watch():
            while (loss := self._try(batch)) is None:
                self._optimizer.zero_grad(set_to_none=True)
                free_memory()
        return loss

    def _try(self, batch: Batch) -> Tensor | None:
        """Return a batch's loss, its gradients in place.

        None if it failed and another form or smaller parts may work.

        The error's traceback holds all that the failed pass had in memory, and is freed when this returns.
        """
        try:
            self._optimizer.zero_grad(set_to_none=True)
            return self._accumulate(batch)
        except Exception as error:
            if is_out_of_memory(error):
                self._halve()
            elif self.compiling.form != "eager":
                self.compiling.fall_back(error)
            else:
                raise
        return None

    def _accumulate(self, batch: Batch) -> Tensor:
        """Accumulate gradients over parts that fit into memory."""
        size = len(next(iter(batch.values())))
        if size > self.micro_batch:
            self.compiling.take_in_parts()
        total = torch.zeros((), device=self._device)
        for first in range(0, size, self.micro_batch):
            part = {name: values[first : first + self.micro_batch] for name, values in batch.items()}
            if self.layout is not torch.contiguous_format and "image" in part:
                part["image"] = part["image"].to(memory_format=self.layout)
            share = min(self.micro_batch, size - first) / size
            last = first + self.micro_batch >= size
            with self._unsynchronised() if not last else contextlib.nullcontext():
                half = self.precision is not torch.float32
                with (
                    profile_range("forward", self._device),
                    torch.autocast(self._device.type, self.precision, enabled=half),
                ):
                    if self.teacher is not None:
                        with torch.no_grad():
                            part["teacher"] = self._task.forward(self.teacher, part).float()
                    output = self._task.forward(self.forward, part)
                with profile_range("loss", self._device):
                    loss = self._loss(output.float(), part) * share
                with profile_range("backward", self._device):
                    self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def _unsynchronised(self) -> contextlib.AbstractContextManager[None]:
        """Do not average gradients over the group.

        That is done once, with the last part of a batch.
        """
        wrapped = self._wrapped
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()

    def _halve(self) -> None:
        if self._in_group:  # the others wait for its gradients: it cannot take a step alone
            raise TrainingError(
                "a GPU ran out of memory while several train together. Set training.micro_batch to less than "
                f"{self.micro_batch}, or training.recompute_activations: true"
            ) from None
        smaller = math.ceil(self.micro_batch / 2)
        # Of no part of a batch the loss has too few to compare.
        while smaller < self._least or 0 < self._batch_size % smaller < self._least:
            smaller += 1
        if smaller >= self.micro_batch:
            few = (
                f"{self.micro_batch} samples, which the loss compares, do"
                if self._least > 1
                else "one sample alone does"
            )
            raise TrainingError(
                f"{few} not fit into the GPU's memory. Make data.patch smaller, or set "
                "training.recompute_activations: true"
            ) from None
        self.micro_batch = smaller
        _LOG.warning("out of memory: %d samples at once from now on; gradients are added up", self.micro_batch)


def training_precision(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    """Return the dtype in which a network trains."""
    if spec.precision != "auto":
        wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.precision]
        if wanted is torch.bfloat16 and inference_type(device) is not wanted:
            _LOG.warning("training.precision: bfloat16, which this GPU only emulates: float16 is many times faster")
        return wanted
    return torch.float32 if device.type != "cuda" else inference_type(device)
