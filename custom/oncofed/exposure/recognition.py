"""Recognises whose patients' images an update was trained on.

The update is compared with each candidate's gradient, both without what patients share (a projection, as in the
gradient attacks of Nasr, Shokri and Houmansadr, IEEE S&P 2019, without their trained network). Each weight counts by
how much it differs between patients, as in a linear discriminant.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.exposure.results import Recognition
from oncofed.tasks.resampling import interval

_FALSE_POSITIVES = 0.01
_DRAWS = 1000
_LEAST_SPREAD = 0.1  # of a weight, in root mean squares over all weights


class Reference:
    """What an attacker knows of patients' gradients, from patients of its own.

    Args:
        gradients: of them, (patients, weights); two patients at least.
        adaptive: the optimizer divides each weight's gradient by its usual size, as AdamW does.
    """

    def __init__(self, gradients: Tensor, adaptive: bool) -> None:
        spread = gradients.var(dim=0)
        self._scale = (spread + _LEAST_SPREAD**2 * spread.mean()).clamp(min=1e-30).rsqrt()
        # An adaptive step has divided by the spread already.
        self._of_update = spread.sqrt() * self._scale if adaptive else self._scale
        self._shared: Tensor = torch.linalg.qr((gradients * self._scale).T)[0]

    def seen(self, update: Tensor) -> Tensor:
        """Return what of an update, (weights,), is not what patients share.

        Args:
            update: weights after less before.
        """
        return self._unshared(-update * self._of_update)

    def score(self, seen: Tensor, gradient: Tensor) -> float:
        """Return how much of a candidate's gradient, (weights,), is in what is seen of an update."""
        own = self._unshared(gradient * self._scale)
        return float(own @ seen / own.norm().clamp(min=1e-30))

    def _unshared(self, vector: Tensor) -> Tensor:
        return vector - self._shared @ (self._shared.T @ vector)


def recognition(inside: Tensor, outside: Tensor, seed: int) -> Recognition:
    """Return how well scores tell patients inside from those outside.

    Args:
        inside: scores of patients that were trained on.
        outside: scores of others.
        seed: of the interval.
    """
    a, b = inside.numpy(), outside.numpy()
    rng = np.random.default_rng(seed)
    drawn = [_auc(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(_DRAWS)]
    threshold = np.sort(b)[int(np.ceil((1 - _FALSE_POSITIVES) * len(b))) - 1]
    return Recognition(
        auc=_auc(a, b),
        interval=interval(np.array(drawn), min(len(a), len(b))),
        true_positive_rate=float((a > threshold).mean()),
        inside=len(a),
        outside=len(b),
    )


def _auc(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    above, level = inside[:, None] > outside, inside[:, None] == outside
    return float((above + 0.5 * level).mean())
