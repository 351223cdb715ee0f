"""One site's training: a network, its optimizer, and the cases on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oncofed.data.augment import Batch
from oncofed.data.batches import BatchStream
from oncofed.data.cases import Case, Cases
from oncofed.data.prepared import PreparedCases, plan_cache
from oncofed.devices import fitting, free_memory, inference_type, is_out_of_memory, training_device
from oncofed.errors import StateError, TrainingError
from oncofed.models.weights import Weights, load_weights, weights_of
from oncofed.packs.extensions import Loss
from oncofed.tasks import Evaluation
from oncofed.training import checkpoint as checkpoints
from oncofed.training.activation_checkpointing import checkpoint_blocks
from oncofed.training.compiling import Compiling, Form, Situation, in_form
from oncofed.training.determinism import alerts_told, make_repeatable, use_deterministic_forms
from oncofed.training.gradient_hook import GradientHook
from oncofed.training.memory_format import memory_format, overwrite, overwriting_activations
from oncofed.training.optimizer import StepScaler, build_optimizer, learning_rate
from oncofed.training.parallel import Group, WorkerProcesses
from oncofed.training.plan import Plan, TrainingSpec
from oncofed.training.profile_ranges import profile_range
from oncofed.training.writing import CheckpointWriter

# Called with the steps done since the start of the run, and what reads the last loss: a GPU waits when it is called.
OnStep = Callable[[int, Callable[[], float]], None]

_LOG = logging.getLogger(__name__)
_STEPS_BETWEEN_LOOKS = 50
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Trainer:
    """Trains and evaluates one network on one site's cases.

    Args:
        plan: what to train.
        cases: the site's cases.
        site: name of the site; with the plan's seed it decides all that is random.
        device: where to train; by default what ``training_device`` says.
        checkpoint: file in which the state is kept, so that a later process goes on; the state before stays
            beside it, by the name that ``previous_of`` gives. None: nowhere.
        group: the processes that train together, of which this is one; None: this one alone.

    Attributes:
        steps_done: optimizer steps since the start of the run.
        unfinished: the turn in which an earlier process ended, as the checkpoint has it, or which failed; ``train`` can
            go on with it.
        not_kept: why the checkpoint could not be written last time; None where it was.

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
        self.plan = plan
        self.cases = cases
        self.device = device or training_device()
        self.task = plan.build_task()
        self.input = self.task.input(plan.training.augmentation)
        self.steps_done = 0
        self._site = site
        self._group = group
        self._seed = _site_seed(plan.seed, site)
        make_repeatable(self._seed, plan.training.deterministic)
        network = plan.build_network()
        if plan.training.deterministic and self.device.type == "cuda":
            use_deterministic_forms(network)
        with fitting("the network"):
            self.network = network.to(self.device)
        self._layout = torch.contiguous_format
        if self.device.type == "cuda":
            # Weights keep their names and values.
            self._layout = memory_format(self.network, plan.data.dimensions)
            self.network = self.network.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._activations = overwriting_activations(self.network)
        if plan.training.recompute_activations and not checkpoint_blocks(self.network):
            _LOG.warning(
                "%s has no blocks that can be computed twice: training.recompute_activations changes nothing",
                plan.model.network,
            )
        self._shared = group.wrap(self.network) if group else None
        self._transforms, self._own_loss = plan.build_extensions()
        self._use("eager")
        situation = Situation(
            wanted=plan.training.compile,
            deterministic=plan.training.deterministic,
            total_steps=plan.total_steps,
            device=self.device,
            replayable=group is None and plan.model.kind != "bag" and not plan.training.recompute_activations,
            cache=checkpoint.parent if checkpoint else None,
            agree=group.agree if group else None,
        )
        self._compiling = Compiling(situation, self.network, self._use)
        with fitting("the optimizer's state"):
            self._optimizer = build_optimizer(plan.training, self.network)
        self._precision = _precision(plan.training, self.device)
        self._scaler = StepScaler(self.device.type, self._precision)
        # Operations without a deterministic form are reported once, in the first step.
        self._watch = alerts_told if plan.training.deterministic else contextlib.nullcontext
        self._batch_size = plan.training.batch_size // (group.size if group else 1)
        self._micro = min(plan.training.micro_batch or self._batch_size, self._batch_size)
        self._batches: BatchStream | None = None
        self._training: PreparedCases | None = None
        self._validation: PreparedCases | None = None
        self.gradient_hook: GradientHook | None = None
        self._writer = CheckpointWriter(checkpoint, self.device.type == "cuda") if checkpoint else None
        self.not_kept: str | None = None
        self.unfinished: str | None = None
        self._turn: str | None = None
        self._tally = _LossSum()
        self._restored: checkpoints.Tensors | None = None
        self._restored_turn: checkpoints.Tensors = {}
        if checkpoint and checkpoint.is_file():
            self._restore(checkpoint)

    def _use(self, form: Form) -> None:
        """Take the next steps in another form; see ``Compiling``."""
        deterministic = self.plan.training.deterministic
        self._forward: Callable[..., Tensor] = in_form(self._shared or self.network, form, deterministic)
        # A compiler may not know a pack's loss. The loss's arguments are no part of a graph.
        plainer: Form = "compiled" if form == "replayed" else form
        self._loss: Loss = self._own_loss or in_form(self.task.loss, plainer, deterministic)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> BatchStream:
        """Return the run's stream of batches.

        The training cases are read once and kept.

        Args:
            progress: called with (cases prepared, cases in all), where all are prepared before the first batch.
        """
        if self._batches is None:
            if self._group and self._group.rank == 0:
                self._group.command_preparing(self.steps_done)
            prepared = PreparedCases(self.cases.train, self.input, self.device, progress)
            self._training = prepared
            rank = self._group.rank if self._group else 0
            # The others of a group restart where the first one resumes: their batches are new ones.
            seed = self._seed if rank == 0 else _site_seed(self._seed, f"{rank} {self.steps_done}")
            self._batches = BatchStream(prepared, self.input, self._batch_size, seed, self.device)
            if self._restored:
                self._batches.restore(checkpoints.without_prefix(self._restored, "batches"))
                self._restored = None
            if self._group:
                # The others wait at the GPUs' next exchange for minutes only.
                self._group.meet()
        return self._batches

    def load_weights(self, weights: Weights) -> None:
        """Replace the network's weights; the optimizer's state stays."""
        load_weights(self.network, weights)

    def weights(self) -> Weights:
        """Return a copy of the network's weights on the CPU."""
        return {name: value.detach().cpu().clone().contiguous() for name, value in weights_of(self.network).items()}

    def train(
        self,
        steps: int,
        on_step: OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
        turn: str | None = None,
        wait: bool = True,
    ) -> float:
        """Take ``steps`` optimizer steps and return their mean loss.

        A step whose loss is not finite changes nothing. The state is kept in the checkpoint once a minute and at the
        end.

        Args:
            steps: how many.
            on_step: called after each step.
            should_stop: called before each step; true ends the training early.
            turn: a name for these steps. Where it is that of the ``unfinished`` turn, the steps that an earlier
                process took in it count in its loss and its gradient hook too, and ``steps`` are what is left of it.
            wait: until the checkpoint is on disk; otherwise ``settle`` does.

        Raises:
            TrainingError: too many steps were left out, or one sample alone does not fit into memory.
        """
        if self._group:
            self.prepare()
            self._group.command(steps, self.steps_done)
        if turn is None or turn != self.unfinished:
            self._tally = _LossSum()
        elif self.gradient_hook:
            self.gradient_hook.restore_round(self._restored_turn)
        self._turn, self.unfinished, self._restored_turn = turn, None, {}
        try:
            loss = self.take_turn(steps, on_step, should_stop)
            self._keep()
        except BaseException:
            # A retry of this round, after a failure that may have passed, resumes it.
            self.unfinished, self._restored_turn = (
                turn,
                dict(self.gradient_hook.round_state) if self.gradient_hook else {},
            )
            self.settle()
            raise
        if wait:
            self.settle()
        return loss

    def take_turn(
        self, steps: int, on_step: OnStep | None = None, should_stop: Callable[[], bool] | None = None
    ) -> float:
        """Run the steps of ``train``, in each process of a group."""
        batches = self.prepare()
        self.network.train()
        overwrite(self._activations, False)
        if self._group:
            self._group.same_weights(self.network)
        tally = self._tally.to(self.device)
        kept = time.monotonic()
        for _ in range(steps):
            stop = bool(should_stop and should_stop())
            if self._group.agree(stop) if self._group else stop:
                break
            with profile_range("input", self.device):
                batch = next(batches)
                for transform in self._transforms:
                    batch = transform(batch)
            with self._compiling.step(self.plan.total_steps - self.steps_done):
                loss = self._step(batch)
            finite = torch.isfinite(loss)
            tally.loss += torch.where(finite, loss, 0)
            tally.skipped += ~finite
            tally.taken += 1
            if on_step:
                on_step(self.steps_done, loss.item)
            if tally.taken % _STEPS_BETWEEN_LOOKS == 0:
                self._require_finite(tally)
                if time.monotonic() - kept > _SECONDS_BETWEEN_CHECKPOINTS:
                    self._keep()
                    kept = time.monotonic()
        self._require_finite(tally)
        left_out = int(tally.skipped)
        if left_out:
            _LOG.warning("left out %d of %d steps, whose loss was not finite", left_out, tally.taken)
        return float(tally.loss) / max(tally.taken - left_out, 1)

    def evaluate(
        self,
        cases: tuple[Case, ...],
        should_stop: Callable[[], bool] | None = None,
        detailed: bool = False,
        progress: Callable[[int, int], None] | None = None,
        keep: list[tuple[str, Any]] | None = None,
    ) -> Evaluation:
        """Score the network on ``cases``; see ``Task.evaluate``.

        Validation cases are held prepared from then on.
        """
        torch.cuda.empty_cache()  # scoring takes other, larger pieces than training left there
        overwrite(self._activations, True)
        held = self._validation_of(cases, progress)
        return self.task.evaluate(self.network, cases, self.device, detailed, should_stop, held, progress, keep)

    def _validation_of(
        self, cases: tuple[Case, ...], progress: Callable[[int, int], None] | None
    ) -> PreparedCases | None:
        """Return validation cases as they are held.

        None for others, and for those outside the first evaluation.
        """
        preparation = self.task.scoring_preparation()
        if not preparation or not cases or not set(cases) <= set(self.cases.validation):
            return None
        if self._validation is None:
            memory = torch.device("cpu")
            plan = plan_cache(cases, preparation, memory, self._training.promised if self._training else 0)
            self._validation = PreparedCases(cases, preparation, memory, progress, plan)
        return self._validation if all(case in self._validation for case in cases) else None

    def close(self) -> None:
        """Wait for the last checkpoint, and have nothing more read ahead."""
        self.settle()
        for prepared in (self._training, self._validation):
            if prepared:
                prepared.close()

    def settle(self) -> None:
        """Wait until the last checkpoint is on disk.

        ``not_kept`` says why it is not.
        """
        if self._writer and self._writer.writing:
            self._tell_whether_kept(self._writer.wait)

    def _keep(self) -> None:
        """Write the whole state, for bit-exact resumption."""
        self.settle()
        if self._writer:
            self._tell_whether_kept(partial(self._writer.write, *self._state()))

    def _tell_whether_kept(self, write: Callable[[], None]) -> None:
        """Continue training where writing fails.

        A full disk costs what a later crash would lose, not the training.
        """
        try:
            write()
            self.not_kept = None
        except OSError as error:
            self.not_kept = error.strerror or str(error)
            _LOG.warning("the training's state could not be kept (%s): free some space", self.not_kept)

    def _state(self) -> tuple[checkpoints.Tensors, dict[str, Any]]:
        tensors = {f"network.{name}": value for name, value in weights_of(self.network).items()}
        optimizer = checkpoints.optimizer_tensors(self._optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors |= {f"batches.{name}": value for name, value in self.prepare().state().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.gradient_hook:
            tensors |= {f"turn.{name}": value for name, value in self.gradient_hook.round_state.items()}
        facts = {"of": self._digest(), "steps_done": self.steps_done, "micro_batch": self._micro}
        facts |= {"turn": self._turn, "tally": self._tally.facts, "scaler": self._scaler.state_dict()}
        return tensors, facts

    def _restore(self, path: Path) -> None:
        tensors, facts = checkpoints.read_checkpoint(path)
        if facts.get("of") != self._digest():
            raise StateError(
                f"{path}: the checkpoint is of another job, site or network. Delete it to start from the beginning."
            )
        self.load_weights(checkpoints.without_prefix(tensors, "network"))
        checkpoints.restore_optimizer(self._optimizer, checkpoints.without_prefix(tensors, "optimizer"))
        self._scaler.load_state_dict(facts["scaler"])
        self.steps_done, self._micro = facts["steps_done"], facts["micro_batch"]
        self.unfinished, self._tally = facts["turn"], _LossSum(**facts["tally"])
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self._restored, self._restored_turn = tensors, checkpoints.without_prefix(tensors, "turn")

    def _digest(self) -> str:
        names = sorted(case.name for case in self.cases.train)
        return hashlib.sha256(f"{self.plan.model_dump_json()} {self._site} {names}".encode()).hexdigest()

    def _step(self, batch: Batch) -> Tensor:
        """Take one step and return its loss, on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan.training, self.steps_done, self.plan.total_steps)
        watch, self._watch = self._watch, contextlib.nullcontext
        with watch():
            while (loss := self._tried(batch)) is None:
                self._optimizer.zero_grad(set_to_none=True)
                free_memory()
        with profile_range("optimizer", self.device):
            self._scaler.unscale_(self._optimizer)
            if self.gradient_hook:
                self.gradient_hook.apply(self.network)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self.steps_done += 1
        return self._group.mean(loss) if self._group else loss

    def _tried(self, batch: Batch) -> Tensor | None:
        """Return a batch's loss, its gradients in place.

        None where that failed and is to be tried in another way.

        An error holds on to all that the failed pass had in memory: it is let go of when this returns.
        """
        try:
            self._optimizer.zero_grad(set_to_none=True)
            return self._gradients(batch)
        except Exception as error:
            if is_out_of_memory(error):
                self._halve()
            elif self._compiling.form != "eager":
                self._compiling.fall_back(error)
            else:
                raise
        return None

    def _gradients(self, batch: Batch) -> Tensor:
        """Accumulate a batch's gradients in parts; return its mean loss.

        The parts fit into memory.
        """
        size = len(next(iter(batch.values())))
        if size > self._micro:
            self._compiling.take_in_parts()
        total = torch.zeros((), device=self.device)
        for first in range(0, size, self._micro):
            part = {name: values[first : first + self._micro] for name, values in batch.items()}
            if self._layout is not torch.contiguous_format and "image" in part:
                part["image"] = part["image"].to(memory_format=self._layout)
            share = min(self._micro, size - first) / size
            last = first + self._micro >= size
            with self._alone() if not last else contextlib.nullcontext():
                half = self._precision is not torch.float32
                with (
                    profile_range("forward", self.device),
                    torch.autocast(self.device.type, self._precision, enabled=half),
                ):
                    output = self.task.forward(self._forward, part)
                with profile_range("loss", self.device):
                    loss = self._loss(output.float(), part) * share
                with profile_range("backward", self.device):
                    self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients to this process.

        They are averaged once, with the last part of a batch.
        """
        shared = self._shared
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else contextlib.nullcontext()

    def _halve(self) -> None:
        if self._group:  # the others wait for this one's gradients: it cannot take a step of its own
            raise TrainingError(
                "a GPU ran out of memory while several train together. Set training.micro_batch to less than "
                f"{self._micro}, or training.recompute_activations: true"
            ) from None
        if self._micro == 1:
            raise TrainingError(
                "one sample alone does not fit into the GPU's memory. Make data.patch smaller, or set "
                "training.recompute_activations: true"
            ) from None
        self._micro = math.ceil(self._micro / 2)
        _LOG.warning("out of memory: %d samples at once from now on; gradients are added up", self._micro)

    def _require_finite(self, tally: _LossSum) -> None:
        skipped, taken = int(tally.skipped), tally.taken
        if skipped > self.plan.training.most_skipped or (taken and skipped == taken):
            raise TrainingError(
                f"the loss was not finite in {skipped} of {taken} steps up to step {self.steps_done}, expected at most "
                f"{self.plan.training.most_skipped} (training.most_skipped). Lower training.learning_rate, or look for "
                "images with extreme intensities."
            )


class _LossSum:
    """Running sums of a round's steps.

    They stay on the device, so that no step waits for the host.
    """

    def __init__(self, loss: float = 0.0, skipped: int = 0, taken: int = 0) -> None:
        self.loss = torch.tensor(loss, dtype=torch.float64)
        self.skipped = torch.tensor(skipped)
        self.taken = taken

    def to(self, device: torch.device) -> _LossSum:
        self.loss, self.skipped = self.loss.to(device), self.skipped.to(device)
        return self

    @property
    def facts(self) -> dict[str, Any]:
        return {"loss": float(self.loss), "skipped": int(self.skipped), "taken": self.taken}


@dataclass(frozen=True)
class _WorkerMain:
    """The function of a group's other processes."""

    plan: Plan
    cases: Cases
    site: str

    def __call__(self, group: Group) -> Callable[[int | None, int], object]:
        trainer = Trainer(self.plan, self.cases, self.site, group.device, group=group)

        def act(steps: int | None, done: int) -> object:
            trainer.steps_done, trainer._tally = done, _LossSum()
            return trainer.prepare() if steps is None else trainer.take_turn(steps)

        return act


@contextlib.contextmanager
def start_trainer(
    plan: Plan, cases: Cases, site: str, checkpoint: Path | None = None, devices: str | None = None
) -> Iterator[Trainer]:
    """Yield a trainer on the plan's number of GPUs.

    With several, it is the first of a group.

    A group's result does not repeat itself to the bit after a restart, as that of one process does.

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
        followers = WorkerProcesses(_WorkerMain(plan, cases, site), plan.resources.gpus, devices or "cuda")
        left.callback(followers.close)
        try:
            trainer = Trainer(plan, cases, site, followers.group.device, checkpoint, followers.group)
            left.callback(trainer.close)
            yield trainer
        except (RuntimeError, TrainingError):
            followers.require_alive()
            raise


def _site_seed(seed: int, site: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{site}".encode()).digest()[:4], "big")


def _precision(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    if spec.precision != "auto":
        wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.precision]
        if wanted is torch.bfloat16 and inference_type(device) is not wanted:
            _LOG.warning("training.precision: bfloat16, which this GPU only emulates: float16 is many times faster")
        return wanted
    return torch.float32 if device.type != "cuda" else inference_type(device)
