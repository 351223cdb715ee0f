"""The interface of tasks with an answer for a whole slide."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from oncofed.data.inputs import Prepared
from oncofed.tasks.inferred import SlideBoxes
from oncofed.tasks.slide_strips import SlideMap
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, StripStore


class SlideTask(ABC):
    """A task that answers for a slide strip by strip."""

    @abstractmethod
    def infer_slide(
        self, network: nn.Module, prepared: Prepared, device: torch.device, store: StripStore = NOTHING_KEPT
    ) -> SlideMap | SlideBoxes:
        """Return the answer for a whole slide.

        Args:
            network: on ``device``, in evaluation mode.
            prepared: by ``inference_preparation``, of a slide.
            device: where the network is.
            store: of strips that are finished, in which this call goes on.
        """
