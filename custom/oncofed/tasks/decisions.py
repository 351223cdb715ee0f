"""How a network's values become labels, voxel by voxel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oncofed.tasks.entropy import entropy_bytes
from oncofed.tasks.grids import Decide
from oncofed.tasks.windows import Planes

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Decision:
    """From logits to labels, and how unsure these are.

    Between two voxels lie probabilities; in a voxel itself logits decide the same.

    Attributes:
        labels: from values (n, …), and whether they are logits, to labels (1, …).
        probabilities: from logits (n, …), of which it may make use, to probabilities.
        change: what is made of a window's logits before they are weighed; None: nothing.
        entropy: from probabilities to (1, …) uint8.
    """

    labels: Callable[[Tensor, bool], Tensor]
    probabilities: Change
    change: Change | None = None
    entropy: Change = entropy_bytes

    def planes(self, planes: Iterable[Planes]) -> Iterable[Planes]:
        """Yield planes of probabilities."""
        return ((first, self.probabilities(values)) for first, values in planes)

    def of(self, logits: bool, entropy: bool) -> Decide:
        """Return a function from values to labels, (1, …).

        Args:
            logits: the values are logits, else probabilities.
            entropy: add the entropy, (2, …).
        """

        def both(values: Tensor) -> Tensor:
            labels = self.labels(values, logits)
            likely = self.probabilities(values) if logits else values
            return torch.cat([labels, self.entropy(likely).to(labels.dtype)])

        return both if entropy else lambda values: self.labels(values, logits)


def _difference(logits: Tensor) -> Tensor:
    """Return the second class's logits minus the first's.

    Half as many values decide the same.
    """
    return logits[1:].sub_(logits[:1])


def _threshold(logits: bool) -> float:
    return 0.0 if logits else 0.5


def _second(values: Tensor, logits: bool) -> Tensor:
    # A bool is a byte of 0 or 1: no copy is needed to make it a label.
    return (values > _threshold(logits)).view(torch.uint8)


TWO_CLASSES = Decision(_second, torch.sigmoid, _difference)
# As argmax, first of equals included, in a seventh of the time on a CPU.
LIKELIEST = Decision(lambda values, _: values.max(0, keepdim=True).indices, lambda logits: logits.softmax(0))


def in_order(values: Sequence[int]) -> Decision:
    """Return the decision of regions that may overlap.

    Each is likely or not by itself; a later one's label value replaces those before it, as nnU-Net's
    ``regions_class_order`` has it. The entropy is that of the region that is least sure.

    Args:
        values: label value of each region, at most 255.
    """

    def labels(found: Tensor, logits: bool) -> Tensor:
        decided = torch.zeros_like(found[:1], dtype=torch.uint8)
        for region, value in zip(found, values, strict=True):
            decided[0].masked_fill_(region > _threshold(logits), value)
        return decided

    def entropy(likely: Tensor) -> Tensor:
        each = torch.cat([entropy_bytes(region[None]) for region in likely])
        return each.amax(0, keepdim=True)

    return Decision(labels, torch.sigmoid, entropy=entropy)
