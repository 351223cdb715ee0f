"""How alike each site's update is to the others', at the server.

The direction part of FedCE (Jiang et al., CVPR 2023): a site whose update points where the others' sum points supports
them; one that points elsewhere may have other patients, other labels, or nothing to add.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from oncofed.algorithms import Update
from oncofed.models.weights import sum_of_squares

_DIGITS = 4


def similarities(updates: Sequence[Update], trained: Collection[str]) -> dict[str, float]:
    """Return the cosine of each site's update with the sum of the others', weighted by cases.

    One tensor of each update is held at a time.

    Args:
        updates: of a round; those of earlier rounds are left out.
        trained: names of the trained weights.

    Returns:
        Site -> cosine, -1 to 1; without a site whose update, or the others' sum, is zero. Empty for fewer than two.
    """
    fresh = sorted((one for one in updates if not one.staleness), key=lambda one: one.site)
    if len(fresh) < 2:
        return {}
    squares, products = [0.0] * len(fresh), [0.0] * len(fresh)
    whole = 0.0
    for name in sorted(trained):
        tensors = [one.delta[name].float() for one in fresh]
        total = sum(tensor * one.weight for tensor, one in zip(tensors, fresh, strict=True))
        assert not isinstance(total, int), "there are two updates"
        whole += sum_of_squares(total)
        for number, tensor in enumerate(tensors):
            squares[number] += sum_of_squares(tensor)
            products[number] += float((tensor.double() * total.double()).sum())
    found = {}
    for one, square, product in zip(fresh, squares, products, strict=True):
        of_others = whole - 2 * one.weight * product + one.weight**2 * square
        lengths = math.sqrt(max(square, 0.0) * max(of_others, 0.0))
        if lengths > 0:
            cosine = (product - one.weight * square) / lengths
            found[one.site] = round(min(max(cosine, -1.0), 1.0), _DIGITS)
    return found
