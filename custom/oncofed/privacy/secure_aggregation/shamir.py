"""Shamir's secret sharing (Communications of the ACM, 1979).

The field is that of integers modulo 2^256 + 297, the smallest prime above 2^256: any 32 bytes are a secret.
Python's integers take a time that depends on their values: shares are made once a round, on the machine that knows the
secret anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, count: int) -> dict[int, bytes]:
    """Return shares of a secret, any ``threshold`` of which give it.

    Fewer say nothing about it.

    Args:
        secret: 32 bytes.
        threshold: shares that are needed.
        count: shares in all.

    Returns:
        Point, from 1 -> share (33 bytes, big-endian).

    Raises:
        ValueError: the secret's length, or the numbers, are out of range.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        raise ValueError(f"expected {SECRET_BYTES} bytes and 1 <= threshold <= count, found {threshold} of {count}")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {x: polynomial(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, count + 1)}


def join(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of exactly ``threshold`` shares.

    A wrong share gives another secret: whoever joins them compares it with what the owner published.

    Args:
        shares: by point.

    Raises:
        ValueError: a share is out of the field, or their secret is longer than 32 bytes, so that some share is wrong.
    """
    points = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    if not points or min(points) < 1 or max(points.values()) >= PRIME:
        raise ValueError("a share is not of this field")
    secret = at_zero(points)
    if secret >> 8 * SECRET_BYTES:
        raise ValueError("the shares are not of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def polynomial(coefficients: Sequence[int], x: int, prime: int = PRIME) -> int:
    """Return a polynomial's value at a point (Horner's rule).

    Args:
        coefficients: of rising powers; the first is the secret.
        x: the point.
        prime: of the field.
    """
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def at_zero(points: Mapping[int, int], prime: int = PRIME) -> int:
    """Return at zero the polynomial through points (Lagrange).

    Its degree is below the number of points.
    """
    total = 0
    for i, value in points.items():
        above = below = 1
        for j in points:
            if j != i:
                above, below = above * -j % prime, below * (i - j) % prime
        total += value * above * pow(below, -1, prime)
    return total % prime
