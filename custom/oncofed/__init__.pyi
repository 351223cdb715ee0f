# What type checkers see of the package: its public names, from where they are.

from oncofed.algorithms import register_algorithm as register_algorithm
from oncofed.data.cases import usable_cases as usable_cases
from oncofed.data.contract import check_dataset as check_dataset
from oncofed.data.register import register as register
from oncofed.data.register_options import RegisterOptions as RegisterOptions
from oncofed.job.run import Run as Run
from oncofed.job.spec import JobSpec as JobSpec
from oncofed.job.spec import read_job as read_job
from oncofed.models import register_network as register_network
from oncofed.plugins import register_loss as register_loss
from oncofed.plugins import register_task as register_task
from oncofed.plugins import register_transform as register_transform
from oncofed.prediction.model import load_model as load_model
from oncofed.prediction.run import predict as predict
from oncofed.training import Trainer as Trainer

__version__: str
__all__: list[str]
