"""Base of tasks with an answer for each voxel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from oncofed.data.case import Case
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.references import Unreferenced
from oncofed.data.region_patches import SlideOr
from oncofed.tasks.base import Task
from oncofed.tasks.entropy import mean_entropy
from oncofed.tasks.inferred import Inferred, SlideBoxes
from oncofed.tasks.patient_statistics import Outcome
from oncofed.tasks.slide_strips import SlideMap
from oncofed.tasks.slide_task import SlideTask

Found = TypeVar("Found", bound=Inferred)


class DenseTask(Task[Outcome], SlideTask, Generic[Outcome, Found]):
    """A task with an answer for each voxel."""

    def inference_preparation(self) -> Preparation:
        """Return how an unlabelled image, or a whole slide, is read."""
        return SlideOr(self.data, Unreferenced(self.data))

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Found | SlideMap | SlideBoxes:
        """Return the answer on the target grid.

        That is the label file's grid, the image's, or a slide's at the job's resolution.
        """
        if "slide" in prepared:
            return self.infer_slide(network, prepared, device)
        return self._infer(network, prepared, device, entropy=False)

    def infer_with_entropy(
        self, network: nn.Module, prepared: Prepared, device: torch.device
    ) -> Found | SlideMap | SlideBoxes:
        """Return the same, with the entropy of each voxel of an image."""
        if type(self).infer is not DenseTask.infer or "slide" in prepared:  # a subclass changes the answer
            return self.infer(network, prepared, device)
        return self._infer(network, prepared, device, entropy=True)

    def certainty(self, network: nn.Module, case: Case, device: torch.device) -> float | None:
        """Return one less the mean entropy of what is found; None where nothing is, and of a slide's strips."""
        if self.reads_slides:
            return None
        found = self.infer_with_entropy(network, self.prepared(case), device)
        values = getattr(found, "values", getattr(found, "numbers", None))
        entropy: Tensor | None = getattr(found, "entropy", None)
        if values is None or entropy is None:
            return None
        mean = mean_entropy(torch.as_tensor(values).to(entropy.device), entropy)
        return None if mean is None else 1 - mean

    @abstractmethod
    def _infer(self, network: nn.Module, prepared: Prepared, device: torch.device, entropy: bool) -> Found:
        """Return the answer on the target grid, optionally with entropy."""
