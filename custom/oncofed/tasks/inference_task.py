"""The interface of a task for prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from oncofed.data.case import Case
from oncofed.data.inputs import Preparation, Prepared
from oncofed.errors import SpecError
from oncofed.tasks.halving import within_memory
from oncofed.tasks.inferred import Inferred
from oncofed.tasks.pictures import Picture


class InferenceTask(ABC):
    """A task's prediction half: answers and their pictures."""

    def inference_preparation(self) -> Preparation:
        """Return the preparation of an unlabelled case for ``infer``.

        Raises:
            SpecError: the task only scores.
        """
        raise self._only_scores()

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Inferred:
        """Return a network's answer for one prepared case.

        Args:
            network: on ``device``.
            prepared: by ``inference_preparation`` or ``scoring_preparation``.
            device: where the network is.

        Raises:
            SpecError: the task only scores.
        """
        raise self._only_scores()

    def infer_with_entropy(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Inferred:
        """Return ``infer``'s answer; maps come with their entropy.

        A pack's task answers without it.
        """
        return self.infer(network, prepared, device)

    def infer_all(
        self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device, entropy: bool = False
    ) -> list[Inferred]:
        """Return ``infer``'s answers for several cases.

        They are processed in halves if memory is short.

        Args:
            network: on ``device``.
            prepared: as for ``infer``.
            device: where the network is.
            entropy: also compute the entropy of maps.

        Raises:
            TrainingError: one case alone does not fit into memory.
        """
        return within_memory(lambda part: self._infer_part(network, part, device, entropy), prepared)

    @abstractmethod
    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return a picture of a network's answer for one case."""

    def _infer_part(
        self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device, entropy: bool
    ) -> list[Inferred]:
        infer = self.infer_with_entropy if entropy else self.infer
        return [infer(network, case, device) for case in prepared]

    def _only_scores(self) -> SpecError:
        return SpecError(
            f"the task {type(self).__name__} has no predictions: it is one of a pack, and defines no infer"
        )
