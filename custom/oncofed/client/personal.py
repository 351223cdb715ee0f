"""A site's personal model (Ditto; Li et al., ICML 2021)."""

from __future__ import annotations

from oncofed.client.local_training import Stop
from oncofed.models.weights import Weights
from oncofed.training import Evaluation, Trainer
from oncofed.training.gradient_hook import PersonalHook


class PersonalModel:
    """A site's personal model, kept near the global one.

    Args:
        trainer: of the personal model alone.
        hook: keeps it near.
    """

    def __init__(self, trainer: Trainer, hook: PersonalHook) -> None:
        self._trainer, self._hook = trainer, hook
        trainer.gradient_hook = hook

    def train(self, near: Weights, last_step: int, turn_key: str, stop: Stop) -> None:
        """Train up to the global round's last step.

        Args:
            near: weights that the round starts from.
            last_step: of the round, counted from the start of the run.
            turn_key: of the round.
            stop: polled; true ends the training early.
        """
        trainer = self._trainer
        if trainer.steps_done == 0:
            trainer.load_weights(near)
        if trainer.unfinished != turn_key:
            trainer.steps_done = last_step - trainer.plan.training.steps_per_round
        self._hook.start(trainer.network, {})
        self._hook.hold_near(near)
        trainer.train(last_step - trainer.steps_done, None, stop, turn_key, wait=False)

    def test(self, stop: Stop) -> Evaluation:
        """Score it on test cases."""
        return self._trainer.evaluate(self._trainer.cases.test, stop, True)

    def weights(self) -> Weights:
        """Return a copy of its weights on the CPU."""
        return self._trainer.weights()

    def settle(self) -> None:
        """Wait until its checkpoint is on disk."""
        self._trainer.settle()

    def close(self) -> None:
        """Release memory and files."""
        self._trainer.close()
