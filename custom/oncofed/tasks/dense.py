"""Base of tasks with an answer for each voxel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import torch
from torch import nn

from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.references import Unreferenced
from oncofed.tasks.base import Task
from oncofed.tasks.inferred import LabelMap, ObjectMap
from oncofed.tasks.patient_statistics import Outcome

Found = TypeVar("Found", LabelMap, ObjectMap)


class DenseTask(Task[Outcome], Generic[Outcome, Found]):
    """A task with an answer for each voxel."""

    def inference_preparation(self) -> Preparation:
        """Return how an unlabelled image is read."""
        return Unreferenced(self.data)

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Found:
        """Return the answer on the target grid.

        That is the label file's grid, or the image's.
        """
        return self._infer(network, prepared, device, entropy=False)

    def infer_with_entropy(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Found:
        """Return the same, with the entropy of each voxel."""
        if type(self).infer is not DenseTask.infer:  # a subclass changes the answer
            return self.infer(network, prepared, device)
        return self._infer(network, prepared, device, entropy=True)

    @abstractmethod
    def _infer(self, network: nn.Module, prepared: Prepared, device: torch.device, entropy: bool) -> Found:
        """Return the answer on the target grid, optionally with entropy."""
