"""The local training loop.

Scripts, tests, notebooks and federations use it the same way.
"""

from oncofed.tasks import Evaluation
from oncofed.training.plan import Plan
from oncofed.training.settings import ResourcesSpec, TrainingSpec
from oncofed.training.trainer import Trainer, start_trainer

__all__ = ["Evaluation", "Plan", "ResourcesSpec", "Trainer", "TrainingSpec", "start_trainer"]
