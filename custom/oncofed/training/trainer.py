"""One site's training: a network, its optimizer, and the cases on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oncofed.data.augment import Batch
from oncofed.data.batches import Batches
from oncofed.data.cases import Case, Cases
from oncofed.data.prepared import PreparedCases, plan_cache
from oncofed.errors import StateError, TrainingError
from oncofed.models.weights import Weights, load_weights, weights_of
from oncofed.tasks import Evaluation
from oncofed.training import checkpoint as checkpoints
from oncofed.training.corrections import Correction
from oncofed.training.memory import checkpoint_blocks
from oncofed.training.parallel import Followers, Group
from oncofed.training.plan import Plan, TrainingSpec
from oncofed.training.ranges import part

# Called with the steps done since the start of the run, and what reads the last loss: a GPU waits when it is called.
OnStep = Callable[[int, Callable[[], float]], None]

_LOG = logging.getLogger(__name__)
_WORTH_COMPILING = 500
_STEPS_BETWEEN_LOOKS = 50
_SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Trainer:
    """Trains and evaluates one network on one site's cases.

    Args:
        plan: what to train.
        cases: the site's cases.
        site: name of the site; with the plan's seed it decides all that is random.
        device: where to train; by default the first CUDA GPU, else the CPU.
        checkpoint: file in which the state is kept, so that a later process goes on; the state before stays
            beside it, by the name that ``previous_of`` gives. None: nowhere.
        group: the processes that train together, of which this is one; None: this one alone.

    Attributes:
        steps_done: optimizer steps since the start of the run.
        unfinished: the turn in which an earlier process ended, as the checkpoint has it; ``train`` can go on with it.
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
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task = plan.build_task()
        self.input = self.task.input(plan.training.augmentation)
        self.steps_done = 0
        self._site = site
        self._group = group
        self._seed = _site_seed(plan.seed, site)
        _repeatable(self._seed, plan.training.deterministic)
        self.network = plan.build_network().to(self.device)
        self._layout: torch.memory_format | None = None
        if self.device.type == "cuda" and plan.model.kind != "bag":
            # In which tensor cores take convolutions; weights keep their names and values.
            self._layout = torch.channels_last_3d if plan.data.dimensions == 3 else torch.channels_last
            self.network = self.network.to(memory_format=self._layout)  # type: ignore[call-overload]
        if plan.training.checkpointing and not checkpoint_blocks(self.network):
            _LOG.warning(
                "%s has no blocks that can be computed twice: checkpointing changes nothing", plan.model.network
            )
        self._forward: Callable[..., Tensor]
        self._shared = group.wrap(self.network) if group else None
        self._compiled = _worth_compiling(plan, self.device)
        self._forward = torch.compile(self._whole) if self._compiled else self._whole
        self._transforms, loss = plan.build_extensions()
        self._loss = loss or self.task.loss
        self._optimizer = _optimizer(plan.training, self.network)
        self._precision = _precision(plan.training, self.device)
        # Leaves a step out, without the host waiting, where a gradient is not finite. Only half precision is scaled.
        half = self._precision is torch.float16
        scale, interval = (2.0**16, 2000) if half else (1.0, 2**31 - 1)
        self._scaler = torch.amp.GradScaler(self.device.type, init_scale=scale, growth_interval=interval)
        self._batch_size = plan.training.batch_size // (group.size if group else 1)
        self._micro = min(plan.training.micro_batch or self._batch_size, self._batch_size)
        self._batches: Batches | None = None
        self._validation: PreparedCases | None = None
        self._promised = 0  # bytes that the cache of the training cases will take
        self.correction: Correction | None = None
        self._checkpoint = checkpoint
        self.not_kept: str | None = None
        self.unfinished: str | None = None
        self._turn: str | None = None
        self._tally = _Tally()
        self._restored: checkpoints.Tensors | None = None
        self._restored_turn: checkpoints.Tensors = {}
        if checkpoint and checkpoint.is_file():
            self._restore(checkpoint)

    @property
    def _whole(self) -> nn.Module:
        return self._shared or self.network

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> Batches:
        """Read and keep the training cases, if that was not done yet, and return the run's stream of batches.

        Args:
            progress: called with (cases prepared, cases in all), where all are prepared before the first batch.
        """
        if self._batches is None:
            prepared = PreparedCases(self.cases.train, self.input, self.device, progress)
            self._promised = prepared.plan.bytes or 0
            rank = self._group.rank if self._group else 0
            # The others of a group begin anew where the first one goes on: they draw what they have not drawn before.
            seed = self._seed if rank == 0 else _site_seed(self._seed, f"{rank} {self.steps_done}")
            self._batches = Batches(prepared, self.input, self._batch_size, seed, self.device)
            if self._restored:
                self._batches.restore(checkpoints.part(self._restored, "batches"))
                self._restored = None
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
    ) -> float:
        """Take ``steps`` optimizer steps and return the mean loss of the turn.

        A step whose loss is not finite changes nothing. The state is kept in the checkpoint once a minute and at the
        end.

        Args:
            steps: how many.
            on_step: called after each step.
            should_stop: asked before each step; true ends the training early.
            turn: a name for these steps. Where it is that of the ``unfinished`` turn, the steps that an earlier
                process took in it count in its loss and its correction too, and ``steps`` are what is left of it.

        Raises:
            TrainingError: too many steps were left out, or one sample alone does not fit into memory.
        """
        if self._group:
            self._group.order(steps, self.steps_done)
        if turn is None or turn != self.unfinished:
            self._tally = _Tally()
        elif self.correction:
            self.correction.restore_turn(self._restored_turn)
        self._turn, self.unfinished, self._restored_turn = turn, None, {}
        loss = self.take_turn(steps, on_step, should_stop)
        if self._checkpoint:
            self._keep()
        return loss

    def take_turn(
        self, steps: int, on_step: OnStep | None = None, should_stop: Callable[[], bool] | None = None
    ) -> float:
        """Do what ``train`` orders, in each process of a group."""
        batches = self.prepare()
        self.network.train()
        if self._group:
            self._group.same_weights(self.network)
        tally = self._tally.to(self.device)
        kept = time.monotonic()
        for _ in range(steps):
            stop = bool(should_stop and should_stop())
            if self._group.agree(stop) if self._group else stop:
                break
            with part("input", self.device):
                batch = next(batches)
                for transform in self._transforms:
                    batch = transform(batch)
            loss = self._step(batch)
            finite = torch.isfinite(loss)
            tally.loss += torch.where(finite, loss, 0)
            tally.skipped += ~finite
            tally.taken += 1
            if on_step:
                on_step(self.steps_done, loss.item)
            if tally.taken % _STEPS_BETWEEN_LOOKS == 0:
                self._require_finite(tally)
                if self._checkpoint and time.monotonic() - kept > _SECONDS_BETWEEN_CHECKPOINTS:
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
    ) -> Evaluation:
        """Score the network on ``cases``; see ``Task.evaluate``. Validation cases are held prepared from then on."""
        held = None
        if cases and set(cases) <= set(self.cases.validation):
            held = self._prepared_validation(progress)
        return self.task.evaluate(self.network, cases, self.device, detailed, should_stop, held, progress)

    def _prepared_validation(self, progress: Callable[[int, int], None] | None) -> PreparedCases | None:
        how = self.task.scoring_preparation()
        if self._validation is None and how:
            cases, memory = self.cases.validation, torch.device("cpu")
            plan = plan_cache(cases, how, memory, self._promised)
            self._validation = PreparedCases(cases, how, memory, progress, plan)
        return self._validation

    def save(self) -> None:
        """Keep all that a later process needs to go on to the same end, in the checkpoint's file."""
        assert self._checkpoint
        tensors = {f"network.{name}": value for name, value in weights_of(self.network).items()}
        optimizer = checkpoints.optimizer_tensors(self._optimizer)
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors |= {f"batches.{name}": value for name, value in self.prepare().state().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.correction:
            tensors |= {f"turn.{name}": value for name, value in self.correction.turn.items()}
        facts = {"of": self._digest(), "steps_done": self.steps_done, "micro_batch": self._micro}
        facts |= {"turn": self._turn, "tally": self._tally.facts, "scaler": self._scaler.state_dict()}
        checkpoints.write_checkpoint(self._checkpoint, tensors, facts)

    def _keep(self) -> None:
        """Save, and train on where that fails: a full disk costs what a later crash would lose, not the training."""
        try:
            self.save()
            self.not_kept = None
        except OSError as error:
            self.not_kept = error.strerror or str(error)
            _LOG.warning("the training's state could not be kept (%s): free some space", self.not_kept)

    def _restore(self, path: Path) -> None:
        tensors, facts = checkpoints.read_checkpoint(path)
        if facts.get("of") != self._digest():
            raise StateError(
                f"{path}: the checkpoint is of another job, site or network. Delete it to start from the beginning."
            )
        self.load_weights(checkpoints.part(tensors, "network"))
        checkpoints.restore_optimizer(self._optimizer, checkpoints.part(tensors, "optimizer"))
        self._scaler.load_state_dict(facts["scaler"])
        self.steps_done, self._micro = facts["steps_done"], facts["micro_batch"]
        self.unfinished, self._tally = facts["turn"], _Tally(**facts["tally"])
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        self._restored, self._restored_turn = tensors, checkpoints.part(tensors, "turn")

    def _digest(self) -> str:
        names = sorted(case.name for case in self.cases.train)
        return hashlib.sha256(f"{self.plan.model_dump_json()} {self._site} {names}".encode()).hexdigest()

    def _step(self, batch: Batch) -> Tensor:
        """Take one step and return its loss, on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan.training, self.steps_done, self.plan.total_steps)
        while True:
            try:
                self._optimizer.zero_grad(set_to_none=True)
                loss = self._gradients(batch)
                break
            except torch.OutOfMemoryError:
                if self._group:  # the others wait for this one's gradients: it cannot take a step of its own
                    raise TrainingError(
                        "a GPU ran out of memory while several train together. Set training.micro_batch to less than "
                        f"{self._micro}, or training.checkpointing: true"
                    ) from None
                self._halve()
            except Exception as error:
                if not self._compiled:
                    raise
                _LOG.warning("torch.compile failed (%s); training goes on without it", str(error).partition("\n")[0])
                self._compiled, self._forward = False, self._whole
        with part("optimizer", self.device):
            self._scaler.unscale_(self._optimizer)
            if self.correction:
                self.correction.apply(self.network)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self.steps_done += 1
        return self._group.mean(loss) if self._group else loss

    def _gradients(self, batch: Batch) -> Tensor:
        """Add up the gradients of a batch in parts that fit into memory; return the batch's mean loss."""
        size = len(next(iter(batch.values())))
        total = torch.zeros((), device=self.device)
        for first in range(0, size, self._micro):
            few = {name: values[first : first + self._micro] for name, values in batch.items()}
            if self._layout and "image" in few:
                few["image"] = few["image"].to(memory_format=self._layout)
            share = min(self._micro, size - first) / size
            last = first + self._micro >= size
            with self._alone() if not last else contextlib.nullcontext():
                half = self._precision is not torch.float32
                with part("forward", self.device), torch.autocast(self.device.type, self._precision, enabled=half):
                    output = self.task.forward(self._forward, few)
                with part("loss", self.device):
                    loss = self._loss(output.float(), few) * share
                with part("backward", self.device):
                    self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients to this process: they are averaged once, with the last part of a batch."""
        shared = self._shared
        return shared.no_sync() if isinstance(shared, DistributedDataParallel) else contextlib.nullcontext()

    def _halve(self) -> None:
        if self._micro == 1:
            raise TrainingError(
                "one sample alone does not fit into the GPU's memory. Make data.patch smaller, or set "
                "training.checkpointing: true"
            ) from None
        self._micro = math.ceil(self._micro / 2)
        torch.cuda.empty_cache()
        _LOG.warning("out of memory: %d samples at once from now on; gradients are added up", self._micro)

    def _require_finite(self, tally: _Tally) -> None:
        skipped, taken = int(tally.skipped), tally.taken
        if skipped > self.plan.training.most_skipped or (taken and skipped == taken):
            raise TrainingError(
                f"the loss was not finite in {skipped} of {taken} steps up to step {self.steps_done}, expected at most "
                f"{self.plan.training.most_skipped} (training.most_skipped). Lower training.learning_rate, or look for "
                "images with extreme intensities."
            )


class _Tally:
    """What a turn's steps came to so far. Sums stay on the device, so that no step waits for the host."""

    def __init__(self, loss: float = 0.0, skipped: int = 0, taken: int = 0) -> None:
        self.loss = torch.tensor(loss, dtype=torch.float64)
        self.skipped = torch.tensor(skipped)
        self.taken = taken

    def to(self, device: torch.device) -> _Tally:
        self.loss, self.skipped = self.loss.to(device), self.skipped.to(device)
        return self

    @property
    def facts(self) -> dict[str, Any]:
        return {"loss": float(self.loss), "skipped": int(self.skipped), "taken": self.taken}


@dataclass(frozen=True)
class _Following:
    """What the other processes of a group run."""

    plan: Plan
    cases: Cases
    site: str

    def __call__(self, group: Group) -> Callable[[int, int], object]:
        trainer = Trainer(self.plan, self.cases, self.site, group.device, group=group)

        def act(steps: int, done: int) -> float:
            trainer.steps_done, trainer._tally = done, _Tally()
            return trainer.take_turn(steps)

        return act


@contextlib.contextmanager
def start_trainer(
    plan: Plan, cases: Cases, site: str, checkpoint: Path | None = None, devices: str | None = None
) -> Iterator[Trainer]:
    """Yield a trainer on as many GPUs as the plan asks for; where there are several, it is the first of a group.

    A group's result does not repeat itself to the bit after a restart, as that of one process does.

    Args:
        plan: what to train.
        cases: the site's cases.
        site: name of the site.
        checkpoint: see ``Trainer``.
        devices: "cuda" or "cpu"; by default CUDA where it is.

    Raises:
        TrainingError: there are fewer GPUs than the plan asks for.
    """
    kind = devices or ("cuda" if torch.cuda.is_available() or plan.resources.gpus > 1 else "cpu")
    if plan.resources.gpus == 1:
        yield Trainer(plan, cases, site, torch.device(kind), checkpoint)
        return
    followers = Followers(_Following(plan, cases, site), plan.resources.gpus, kind)
    try:
        yield Trainer(plan, cases, site, followers.group.device, checkpoint, followers.group)
    except (RuntimeError, TrainingError):
        followers.require_alive()
        raise
    finally:
        followers.close()


def learning_rate(spec: TrainingSpec, step: int, total: int) -> float:
    """Return the learning rate of ``step`` (from 0) in a run of ``total`` steps."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(total - spec.warmup_steps, 1)
    done = min(done, 1.0)
    if spec.schedule == "cosine":
        return spec.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    if spec.schedule == "polynomial":
        return float(spec.learning_rate * max(1 - done, 0.0) ** 0.9)
    return spec.learning_rate


def _site_seed(seed: int, site: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{site}".encode()).digest()[:4], "big")


def _repeatable(seed: int, deterministic: bool) -> None:
    """Seed what is random, and choose between kernels that repeat themselves and the fastest ones."""
    set_determinism(seed)
    if not deterministic:
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True


def _worth_compiling(plan: Plan, device: torch.device) -> bool:
    if plan.training.compile == "auto":
        return device.type == "cuda" and plan.total_steps >= _WORTH_COMPILING
    return plan.training.compile == "always"


def _optimizer(spec: TrainingSpec, network: nn.Module) -> torch.optim.Optimizer:
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(),
            spec.learning_rate,
            momentum=0.99,
            nesterov=True,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(network.parameters(), spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def _precision(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    if spec.precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
