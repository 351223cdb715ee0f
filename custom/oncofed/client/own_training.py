"""Models that a site trains for itself after the last round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oncofed.algorithms.settings import PersonalizationSpec
from oncofed.client.local_training import Stop
from oncofed.models.weights import Weights
from oncofed.privacy.settings import PrivacySpec
from oncofed.training import Plan, Trainer
from oncofed.training.checkpoint import previous_of, read_checkpoint, write_checkpoint

# Called with (steps done, steps in all).
OnSteps = Callable[[int, int], None]
_ROUNDS_OF_TUNING, _RATE_OF_TUNING = 2, 0.1


def tuning_plan(plan: Plan, spec: PersonalizationSpec) -> Plan:
    """Return the plan of fine-tuning: one round without warm-up, and without noise.

    The weights stay at the site, so that no promise to a patient is touched.

    Args:
        plan: of the job.
        spec: its section ``personalization``.
    """
    settings = plan.training
    changed = {
        "steps_per_round": spec.steps or _ROUNDS_OF_TUNING * settings.steps_per_round,
        "learning_rate": spec.learning_rate or _RATE_OF_TUNING * settings.learning_rate,
        "warmup_steps": 0,
    }
    update = {"training": settings.model_copy(update=changed), "rounds": 1, "privacy": PrivacySpec()}
    return plan.model_copy(update=update)


def alone_plan(plan: Plan) -> Plan:
    """Return the plan of a site that trains by itself: as many steps, without noise."""
    return plan.model_copy(update={"privacy": PrivacySpec()})


class OwnTraining:
    """Trains models beside the job's, each once; a later process goes on where an earlier one ended.

    Args:
        trainer: of the job at this site; tells cases and device.
        site: name of the site.
        folder: keeps the models.
    """

    def __init__(self, trainer: Trainer, site: str, folder: Path) -> None:
        self._trainer, self._site, self._folder = trainer, site, folder

    def trained(
        self, name: str, plan: Plan, start: Weights, on_steps: OnSteps, stop: Stop, *, taught: bool
    ) -> Weights | None:
        """Return a model's weights after all of its plan's steps; None: it was stopped.

        Args:
            name: of its files.
            plan: what to train.
            start: weights to start from.
            on_steps: called after each step.
            stop: polled; true ends the training early.
            taught: the weights at the start teach, where the task learns from a teacher.

        Raises:
            StateError: its checkpoint is of other cases or settings.
        """
        finished = self._folder / f"{name}.safetensors"
        if finished.is_file():
            return read_checkpoint(finished)[0]
        weights = self._train(name, plan, start, on_steps, stop, taught)
        if weights is not None:
            write_checkpoint(finished, weights, {"steps": plan.total_steps})
            self._remove_checkpoint(name)
        return weights

    def _train(
        self, name: str, plan: Plan, start: Weights, on_steps: OnSteps, stop: Stop, taught: bool
    ) -> Weights | None:
        shared, total = self._trainer, plan.total_steps
        trainer = Trainer(plan, shared.cases, self._site, shared.device, self._checkpoint(name))
        try:
            halfway = trainer.weights() if trainer.steps_done else None
            trainer.load_weights(start)
            if taught:
                trainer.hold_as_teacher()
            if halfway:
                trainer.load_weights(halfway)
            trainer.train(total - trainer.steps_done, lambda done, loss: on_steps(done, total), stop, name)
            return None if trainer.steps_done < total else trainer.weights()
        finally:
            trainer.close()

    def _checkpoint(self, name: str) -> Path:
        return self._folder / f"{name}.training.safetensors"

    def _remove_checkpoint(self, name: str) -> None:
        for path in (self._checkpoint(name), previous_of(self._checkpoint(name))):
            path.unlink(missing_ok=True)
