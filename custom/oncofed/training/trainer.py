"""One site's training: a network, its optimizer, and the cases on this machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from oncofed.data.cases import Case, Cases
from oncofed.data.prepared import PreparedCases
from oncofed.data.transforms import augment
from oncofed.errors import TrainingError
from oncofed.tasks import Segmentation
from oncofed.tasks.segmentation import loss_is_finite, mean_score
from oncofed.training.plan import Plan, TrainingSpec

Weights = dict[str, Tensor]
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on some cases of one site.

    Attributes:
        mean: mean over cases of the mean over classes; None without cases.
        by_class: mean over cases, by class.
        cases: how many cases.
    """

    mean: float | None
    by_class: dict[str, float]
    cases: int


class Trainer:
    """Trains and evaluates one network on one site's cases.

    Args:
        plan: what to train.
        cases: the site's cases.
        site: name of the site; with the plan's seed it decides the order of patches.
        device: where to train; by default the first CUDA GPU, else the CPU.
    """

    def __init__(self, plan: Plan, cases: Cases, site: str, device: torch.device | None = None) -> None:
        self.plan = plan
        self.cases = cases
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task = Segmentation(plan.task, plan.data)
        self.steps_done = 0
        self._seed = _site_seed(plan.seed, site)
        set_determinism(self._seed)
        self.network = plan.build_network().to(self.device)
        self._optimizer = _optimizer(plan.training, self.network)
        self._precision = _precision(plan.training, self.device)
        self._scaler = torch.amp.GradScaler(enabled=self._precision is torch.float16)
        self._patches: Iterator[dict[str, Any]] | None = None

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> Iterator[dict[str, Any]]:
        """Read and cache the training cases, if that was not done yet, and return the run's stream of patches.

        Args:
            progress: called with (cases prepared, cases in all).
        """
        if self._patches is None:
            self._patches = self._all_patches(progress)
        return self._patches

    def load_weights(self, weights: Weights) -> None:
        """Replace the network's weights; the optimizer's state stays."""
        self.network.load_state_dict(weights)

    def weights(self) -> Weights:
        """Return a copy of the network's weights on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def train(self, steps: int, on_step: OnStep | None = None, should_stop: Callable[[], bool] | None = None) -> float:
        """Take ``steps`` optimizer steps and return their mean loss.

        Args:
            steps: how many.
            on_step: called after each step with (steps done since the start of the run, loss).
            should_stop: asked before each step; true ends the training early.

        Raises:
            TrainingError: the loss is not finite.
        """
        self.network.train()
        patches = self.prepare()
        total = 0.0
        taken = 0
        for _ in range(steps):
            if should_stop and should_stop():
                break
            loss = self._step(next(patches))
            total += loss
            taken += 1
            if on_step:
                on_step(self.steps_done, loss)
        return total / max(taken, 1)

    def evaluate(self, cases: tuple[Case, ...], should_stop: Callable[[], bool] | None = None) -> Evaluation:
        """Score the network on ``cases``, each on the grid of its label file."""
        self.network.eval()
        scores = []
        for case in cases:
            if should_stop and should_stop():
                break
            segmented = self.task.predict(self.network, case, self.device)
            scores.append(self.task.score(segmented.prediction, segmented.reference))
        by_class = {}
        for name in self.plan.task.classes.values():
            values = [s[name] for s in scores if not math.isnan(s[name])]
            if values:
                by_class[name] = sum(values) / len(values)
        return Evaluation(mean_score(scores), by_class, len(scores))

    def _step(self, batch: dict[str, Any]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.plan.training, self.steps_done, self.plan.total_steps)
        image = batch["image"].to(self.device, non_blocking=True)
        label = batch["label"].to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self._precision, enabled=self._precision is not torch.float32):
            logits = self.network(image)
        loss = self.task.loss(logits.float(), label)
        if not loss_is_finite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.steps_done + 1}, expected a finite number. "
                "Lower training.learning_rate, or look for images with extreme intensities."
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.steps_done += 1
        return float(loss.detach())

    def _all_patches(self, progress: Callable[[int, int], None] | None) -> Iterator[dict[str, Any]]:
        cached = PreparedCases(self.cases.train, self.plan.data, self.task.out_channels, self.device, progress)
        random = augment(self.plan.data, self.task.out_channels, self.plan.training.augment)
        random.set_random_state(self._seed)
        order = torch.Generator().manual_seed(self._seed)
        batch = self.plan.training.batch_size
        # One sampler over the whole run: epochs of shuffled patients, cut into rounds wherever a round ends.
        sampler = RandomSampler(cached, num_samples=batch * self.plan.total_steps, generator=order)
        dataset = Dataset(cached, lambda pair: random(dict(pair))[0])
        pin = self.device.type == "cuda" and cached.plan.held != "gpu"
        return iter(DataLoader(dataset, batch_size=batch, sampler=sampler, pin_memory=pin))


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
