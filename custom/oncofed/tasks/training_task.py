"""The interface of a task for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.inputs import BatchSource
from oncofed.data.spec import DataSpec


class TrainingTask(ABC):
    """A task's training half: input, output and loss.

    ``input`` makes batches; ``forward`` and ``loss`` make a training step.

    Attributes:
        data: of the job.
        loss_name: name of the loss, for people.
        compiles_loss: whether a compiler makes few graphs of the loss; if not, it stays as it is.
    """

    data: DataSpec
    compiles_loss: ClassVar[bool] = True
    loss_name = "the task's own"

    @property
    def learns_from_teacher(self) -> bool:
        """Whether ``loss`` takes a teacher's output.

        Batches of a federation's rounds then hold ``teacher`` too: what the model that the round starts from says.
        """
        return False

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """Output channels: values for each voxel, image or bag."""

    @property
    def pooled_channels(self) -> int:
        """Values of the whole image that the network gives beside those of each voxel."""
        return 0

    @property
    def in_channels(self) -> int:
        """Input channels."""
        return len(self.data.channels)

    @abstractmethod
    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return how cases become batches."""

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return the network's output for a batch."""
        return network(batch["image"])

    def maps(self, output: Tensor) -> Tensor:
        """Return the part of ``forward``'s output that is of ``out_channels``."""
        return output

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss, a scalar, as a mean over samples.

        The losses of half batches then average to that of the full batch.
        """
