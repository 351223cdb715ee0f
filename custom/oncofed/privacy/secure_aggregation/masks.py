"""Masks: streams of AES-256 in counter mode (NIST SP 800-38A).

A stream is the encryption of zeros from counter block 0, read as little-endian words of the width of what it is added
to. Its key is used for one stream alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]

# Bytes of a step: words and mask stay in a core's cache while all masks are added.
_STEP = 1 << 17
_BLOCK = 16
_ZEROS = bytes(_STEP)


class Mask:
    """One mask, added piece by piece.

    Args:
        key: 32 bytes, of this mask alone.
        sign: 1 to add it, -1 to subtract it.
    """

    def __init__(self, key: bytes, sign: int = 1) -> None:
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(_BLOCK))).encryptor()
        self._combine = np.add if sign > 0 else np.subtract

    def apply(self, words: Words, buffer: bytearray) -> None:
        """Add the stream's next words in place.

        Args:
            words: uint32 or uint16, at most a step.
            buffer: for the stream's bytes.
        """
        self._stream.update_into(memoryview(_ZEROS)[: words.nbytes], buffer)
        stream = np.frombuffer(buffer, dtype=words.dtype.newbyteorder("<"), count=words.size)
        self._combine(words, stream, out=words)


def add_masks(words: Words, masks: Sequence[Mask]) -> None:
    """Add the next words of all masks in place.

    Args:
        words: uint32 or uint16, one-dimensional.
        masks: each goes on where it ended.
    """
    buffer = bytearray(_STEP + _BLOCK)
    step = _STEP // words.itemsize
    for first in range(0, words.size, step):
        part = words[first : first + step]
        for mask in masks:
            mask.apply(part, buffer)


def add_mask(words: Words, key: bytes, sign: int = 1) -> None:
    """Add a mask's first words in place."""
    add_masks(words, [Mask(key, sign)])


def pair_sign(own: str, other: str) -> int:
    """Return the sign with which a site applies a pair's mask.

    The first of the two by name adds it, the other subtracts it.
    """
    return 1 if own < other else -1
