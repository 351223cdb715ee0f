"""Training of one network on one site's cases."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.data.harmonization.agreed import PatientValues
from oncofed.data.harmonization.of_cases import patient_values
from oncofed.data.prepared import PreparedCases
from oncofed.devices import fitting, training_device
from oncofed.errors import TrainingError
from oncofed.models.weights import Weights, load_weights, weights_of
from oncofed.tasks import Evaluation
from oncofed.training.activation_checkpointing import checkpoint_blocks
from oncofed.training.averaging import WeightAverage
from oncofed.training.batch_gradients import BatchGradients
from oncofed.training.checkpoint import Tensors
from oncofed.training.damaged import DamagedSlides
from oncofed.training.determinism import make_repeatable, use_deterministic_forms
from oncofed.training.gradient_hook import GradientHook
from oncofed.training.memory_format import memory_format, overwrite, overwriting_activations
from oncofed.training.optimizer import build_optimizer, learning_rate, reset_state
from oncofed.training.parallel import Group, WorkerProcesses
from oncofed.training.patient_gradients import private_gradients
from oncofed.training.plan import Plan
from oncofed.training.profile_ranges import profile_range
from oncofed.training.resumption import Resumption
from oncofed.training.source import Source, training_source
from oncofed.training.validation_cache import ValidationCache

# Called with the steps done since the start of the run, and a function that reads the last loss: a GPU waits for it.
OnStep = Callable[[int, Callable[[], float]], None]

_LOG = logging.getLogger(__name__)
_STEPS_BETWEEN_LOOKS = 50
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Trainer:
    """Trains and evaluates one network on one site's cases.

    Args:
        plan: what to train.
        cases: the site's cases.
        site: name of the site; it and the plan's seed decide all that is random.
        device: where to train; by default what ``training_device`` says.
        checkpoint: file of the state, from which a later process resumes; the previous state stays next to it
            (``previous_of``). None: nowhere.
        group: of processes that train together, including this one; None: this one alone.

    Attributes:
        steps_done: optimizer steps since the start of the run.
        gradient_hook: changes the gradients of each step; None: they stay.
        patient_gradients: of a job with differential privacy; None: it has none.
        damaged: slides that were set aside while they were scored.

    Example:
        >>> trainer = Trainer(plan, read_cases(folder, plan.data.split, plan.seed), "here")  # doctest: +SKIP
        >>> trainer.train(100)  # doctest: +SKIP
        >>> trainer.evaluate(trainer.cases.test, detailed=True).mean  # doctest: +SKIP
    """

    def __init__(
        self,
        plan: Plan,
        cases: Cases,
        site: str,
        device: torch.device | None = None,
        checkpoint: Path | None = None,
        group: Group | None = None,
    ) -> None:
        self.plan = plan = plan.with_own_data()
        self.cases = cases
        self.damaged = DamagedSlides(len(list(cases)), plan.data.max_bad_share)
        self.device = device or training_device()
        self.task = plan.build_task()
        self.input = self.task.input(plan.training.augmentation)
        self.gradient_hook: GradientHook | None = None
        self._group = group
        self._seed = _site_seed(plan.seed, site)
        make_repeatable(self._seed, plan.training.deterministic)
        self.network, layout = _network_on(self.device, plan)
        self._activations = overwriting_activations(self.network)
        _recompute(self.network, plan)
        self._transforms, loss = plan.build_extensions()
        with fitting("the optimizer's state"):
            self._optimizer = build_optimizer(plan.training, self.network)
        private = plan.privacy.differential_privacy
        self._gradients = BatchGradients(
            plan=plan,
            task=self.task,
            network=self.network,
            optimizer=self._optimizer,
            device=self.device,
            layout=layout,
            group=None if private else group,
            samples=private.patches if private else plan.training.batch_size // (group.size if group else 1),
            loss=loss,
            cache=checkpoint.parent if checkpoint else None,
        )
        self.patient_gradients = private_gradients(plan, cases, self._gradients, self.network, group)
        self._average = WeightAverage(self.network, plan.training.ema_decay)
        self._batches: Source | None = None
        self._training: PreparedCases | None = None
        self._validation = ValidationCache(self.task, cases.validation)
        self._resumption = Resumption(
            path=checkpoint,
            identity=_identity(plan, site, cases),
            network=self.network,
            average=self._average,
            optimizer=self._optimizer,
            gradients=self._gradients,
            device=self.device,
        )
        self.steps_done = self._resumption.restore()

    @property
    def unfinished(self) -> str | None:
        """The round to resume with ``train``, if any: an earlier process ended in it, or it failed."""
        return self._resumption.unfinished

    @property
    def not_kept(self) -> str | None:
        """Why the last checkpoint was not written, or None."""
        return self._resumption.not_kept

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> Source:
        """Return the run's stream of batches; training cases are read once and kept.

        Args:
            progress: called with (cases prepared, cases in all), where all are prepared before the first batch.
        """
        if self._batches is None:
            if self._group and self._group.rank == 0:
                self._group.command_preparing(self.steps_done)
            if self._group and self.plan.data.template_columns:
                self._group.same_weights(self.network)
            self.plan.data.take_agreed(weights_of(self.network))
            prepared = PreparedCases(self.cases.train, self.input, self.device, progress)
            self._training = prepared
            rank, size = (self._group.rank, self._group.size) if self._group else (0, 1)
            # The others of a group restart where the first one resumes, with new batches.
            seed = self._seed if rank == 0 else _site_seed(self._seed, f"{rank} {self.steps_done}")
            self._batches = training_source(self.plan, prepared, self.input, seed, self.device, rank, size)
            self._resumption.restore_batches(self._batches)
            if self._group:
                # The others wait at the GPUs' next exchange for minutes only.
                self._group.meet()
            self._take_agreed()
        return self._batches

    def patient_values(self) -> PatientValues:
        """Return what ComBat takes of the site's training patients (``data.harmonization``)."""
        self.prepare()
        training = self._training
        assert training
        return patient_values(self.cases.train, self.plan.data, lambda case: training.of(case)["bags"])

    def _take_agreed(self) -> None:
        self.plan.data.take_agreed(weights_of(self.network))
        if self.plan.data.lacks_patients:
            self.plan.data.take_patients(self.patient_values())

    def load_weights(self, weights: Weights) -> None:
        """Replace the network's weights; the optimizer's state stays."""
        load_weights(self.network, weights)
        self._average.restart()
        self._take_agreed()

    def begin_model(self) -> None:
        """Forget the optimizer's momentum, where the plan starts it anew with each model that a site receives."""
        if self.plan.training.optimizer_state == "reset":
            reset_state(self._optimizer)

    def weights(self) -> Weights:
        """Return a copy of the network's weights on the CPU, or of their mean over steps (``training.ema_decay``)."""
        with self._average.in_place():
            return _copies(self.network)

    def halfway(self) -> tuple[Weights, Tensors]:
        """Return copies of what ``go_back`` takes, to go on with an unfinished round after other weights."""
        return _copies(self.network), {name: value.clone() for name, value in self._average.state().items()}

    def go_back(self, halfway: tuple[Weights, Tensors]) -> None:
        """Go on from the middle of a round."""
        self.load_weights(halfway[0])
        self._average.restore(halfway[1])

    def hold_as_teacher(self) -> None:
        """Hold the weights that a round starts from as the teacher of its steps, where the task learns from one."""
        if self.task.learns_from_teacher:
            self._gradients.hold_teacher(self.network, lambda: _network_on(self.device, self.plan)[0])

    def train(
        self,
        steps: int,
        on_step: OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
        round_key: str | None = None,
        wait: bool = True,
    ) -> float:
        """Take ``steps`` optimizer steps and return their mean loss.

        A step whose loss is not finite changes nothing. The state is kept in the checkpoint once a minute and at the
        end.

        Args:
            steps: to take.
            on_step: called after each step.
            should_stop: called before each step; true ends the training early.
            round_key: a name for these steps. If it is that of the ``unfinished`` round, its loss and its gradient hook
                include the steps of an earlier process, and ``steps`` are the remaining ones.
            wait: until the checkpoint is on disk; otherwise ``settle`` does.

        Raises:
            TrainingError: too many steps were left out, or one sample alone does not fit into memory.
        """
        if self._group:
            self.prepare()
            self._group.command(steps, self.steps_done)
        self._resumption.begin_round(round_key, self.gradient_hook, self.prepare())
        try:
            loss = self._take_steps(steps, on_step, should_stop)
            self._keep()
        except BaseException:
            self._resumption.abandon_round(self.gradient_hook)
            raise
        if wait:
            self.settle()
        return loss

    def follow(self, steps: int | None, steps_done: int) -> None:
        """Carry out a command of a group's first process.

        Args:
            steps: to take with the others; None: only prepare.
            steps_done: before, since the start of the run.
        """
        self.steps_done = steps_done
        if steps is None:
            self.prepare()
        else:
            self._resumption.begin_round(None, self.gradient_hook, self.prepare())
            self._take_steps(steps)

    def evaluate(
        self,
        cases: tuple[Case, ...],
        should_stop: Callable[[], bool] | None = None,
        detailed: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep: list[tuple[str, Any]] | None = None,
    ) -> Evaluation:
        """Score the network on ``cases``; see ``Task.evaluate``.

        Validation cases stay prepared for the next time. Damaged slides are set aside.
        """
        torch.cuda.empty_cache()  # scoring needs other, larger blocks than training left in the cache
        overwrite(self._activations, True)
        held = self._validation.prepared(cases, self._training.promised if self._training else 0, progress)
        aside = self.damaged.set_aside if self.task.reads_slides else None
        scored = (self.network, cases, self.device, detailed, should_stop, held, progress, keep, aside)
        with self._average.in_place():
            return self.task.evaluate(*scored)

    def settle(self) -> None:
        """Wait until the last checkpoint is on disk.

        ``not_kept`` says why it is not.
        """
        self._resumption.settle()

    def close(self) -> None:
        """Wait for the last checkpoint, and stop reading ahead."""
        self.settle()
        if self._training:
            self._training.close()
        self._validation.close()

    def _take_steps(
        self, steps: int, on_step: OnStep | None = None, should_stop: Callable[[], bool] | None = None
    ) -> float:
        """Run the training loop, in each process of a group."""
        batches = self.prepare()
        self.network.train()
        overwrite(self._activations, False)
        if self._group:
            self._group.same_weights(self.network)
        losses, most_skipped = self._resumption.loss_sum.to(self.device), self.plan.training.most_skipped
        kept = time.monotonic()
        for _ in range(steps):
            stop = bool(should_stop and should_stop())
            if self._group.agree(stop) if self._group else stop:
                break
            with profile_range("input", self.device):
                batch = next(batches)
                for transform in self._transforms:
                    batch = transform(batch)
            with self._gradients.compiling.step(self.plan.total_steps - self.steps_done):
                loss = self._step(batch)
            losses.add(loss)
            if on_step:
                on_step(self.steps_done, loss.item)
            if losses.taken % _STEPS_BETWEEN_LOOKS == 0:
                losses.require_finite(most_skipped, self.steps_done)
                if time.monotonic() - kept > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._keep()
                    kept = time.monotonic()
        losses.require_finite(most_skipped, self.steps_done)
        if losses.skipped:
            _LOG.warning("left out %d of %d steps, whose loss was not finite", losses.skipped, losses.taken)
        return losses.mean

    def _step(self, batch: Any) -> Tensor:
        """Take one step and return its loss, on the device.

        Args:
            batch: of the run's source.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan.training, self.steps_done, self.plan.total_steps)
        loss = (self.patient_gradients or self._gradients).compute(batch)
        with profile_range("optimizer", self.device):
            scaler = self._gradients.scaler
            scaler.unscale_(self._optimizer)
            if self.gradient_hook:
                self.gradient_hook.apply(self.network)
            if not self.patient_gradients:  # it has clipped each patient's gradient
                nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
            scaler.step(self._optimizer)
            scaler.update()
            self._average.update()
        self.steps_done += 1
        return self._group.mean(loss) if self._group else loss

    def _keep(self) -> None:
        self._resumption.keep(self.steps_done, self.prepare(), self.gradient_hook)


@dataclass(frozen=True)
class _WorkerMain:
    """The function of a group's other processes."""

    plan: Plan
    cases: Cases
    site: str

    def __call__(self, group: Group) -> Callable[[int | None, int], object]:
        return Trainer(self.plan, self.cases, self.site, group.device, group=group).follow


@contextlib.contextmanager
def start_trainer(
    plan: Plan, cases: Cases, site: str, checkpoint: Path | None = None, devices: str | None = None
) -> Iterator[Trainer]:
    """Yield a trainer on the plan's number of GPUs.

    With several, it is the first of a group, whose results are not the same to the bit after a restart, as those of
    one process are.

    Args:
        plan: what to train.
        cases: the site's cases.
        site: name of the site.
        checkpoint: see ``Trainer``.
        devices: "cuda" or "cpu"; by default CUDA where it is.

    Raises:
        TrainingError: there are fewer GPUs than the plan asks for, or they cannot be used.
    """
    with contextlib.ExitStack() as left:
        if plan.resources.gpus == 1:
            trainer = Trainer(plan, cases, site, training_device(devices), checkpoint)
            left.callback(trainer.close)
            yield trainer
            return
        workers = WorkerProcesses(_WorkerMain(plan, cases, site), plan.resources.gpus, devices or "cuda")
        left.callback(workers.close)
        try:
            trainer = Trainer(plan, cases, site, workers.group.device, checkpoint, workers.group)
            left.callback(trainer.close)
            yield trainer
        except (RuntimeError, TrainingError):
            workers.require_alive()
            raise


def _network_on(device: torch.device, plan: Plan) -> tuple[nn.Module, torch.memory_format]:
    """Return a new network and its memory format."""
    network = plan.build_network()
    on_gpu = device.type == "cuda"
    if plan.training.deterministic and on_gpu:
        use_deterministic_forms(network)
    with fitting("the network"):
        network = network.to(device)
    if not on_gpu:
        return network, torch.contiguous_format
    # Weights keep their names and values.
    layout = memory_format(network, plan.data.dimensions)
    return network.to(memory_format=layout), layout  # type: ignore[call-overload]


def _recompute(network: nn.Module, plan: Plan) -> None:
    """Have activations computed again in the backward pass, where the plan asks for it and the network can."""
    if plan.training.recompute_activations and not checkpoint_blocks(network):
        _LOG.warning(
            "%s has no blocks that can be computed twice: training.recompute_activations changes nothing",
            plan.model.network,
        )


def _copies(network: nn.Module) -> Weights:
    return {name: value.detach().cpu().clone().contiguous() for name, value in weights_of(network).items()}


def _identity(plan: Plan, site: str, cases: Cases) -> str:
    """Return a digest of what a training's checkpoint belongs to."""
    names = sorted(case.name for case in cases.train)
    return hashlib.sha256(f"{plan.model_dump_json()} {site} {names}".encode()).hexdigest()


def _site_seed(seed: int, site: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{site}".encode()).digest()[:4], "big")
