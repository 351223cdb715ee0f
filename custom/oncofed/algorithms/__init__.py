"""Federated learning algorithms, one file per paper.

Each has the server's half, the clients' half and the settings.
"""

from oncofed.algorithms.base import Algorithm, JobFacts, Update
from oncofed.algorithms.registry import algorithm_class, algorithm_names, register_algorithm

__all__ = ["Algorithm", "JobFacts", "Update", "algorithm_class", "algorithm_names", "register_algorithm"]
