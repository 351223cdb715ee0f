"""The local training loop. It knows nothing of federation: a script, a test and a notebook use it the same way."""

from oncofed.tasks import Evaluation
from oncofed.training.plan import Plan, TrainingSpec
from oncofed.training.trainer import Trainer

__all__ = ["Evaluation", "Plan", "Trainer", "TrainingSpec"]
