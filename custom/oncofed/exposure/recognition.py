"""Recognises whose patients' images an update was trained on.

The update is compared with each candidate's gradient, both without what patients share (a projection, as in the
gradient attacks of Nasr, Shokri and Houmansadr, IEEE S&P 2019, without their trained network).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.exposure.results import Recognition
from oncofed.tasks.resampling import interval

_FALSE_POSITIVES = 0.01
_DRAWS = 1000


def shared_directions(reference: Tensor) -> Tensor:
    """Return an orthonormal basis of what patients share, (weights, patients).

    Args:
        reference: gradients of the attacker's own patients, (patients, weights).
    """
    basis: Tensor = torch.linalg.qr(reference.T)[0]
    return basis


def scores(update: Tensor, gradients: Iterable[Tensor], shared: Tensor) -> Tensor:
    """Return how much each candidate's gradient is in an update, (candidates,).

    Args:
        update: weights after less before, (weights,).
        gradients: of candidates, (weights,) each.
        shared: basis of what patients share.
    """
    seen = -(update - shared @ (shared.T @ update))
    found = []
    for gradient in gradients:
        own = gradient - shared @ (shared.T @ gradient)
        found.append(float(own @ seen / own.norm().clamp(min=1e-30)))
    return torch.tensor(found)


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
