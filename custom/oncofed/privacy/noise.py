"""Random numbers that nobody else can replay.

The seed of a job is known to all who have the job. Noise from it could be taken away again, and generators made for
simulations (Philox, Mersenne Twister) promise nothing against one who wants to guess. So draws and noise for
differential privacy come from the system's entropy by AES-256 in counter mode (NIST SP 800-38A, SP 800-90A).
"""

from __future__ import annotations

import hashlib
import math
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

_KEY_BYTES = 32
_PIECE = 1 << 16  # numbers at once: what a core's cache holds
_ZEROS = bytes(8 * _PIECE)
_BITS = 53  # of a float64's mantissa


class SecretStream:
    """An endless stream of random bits from one key.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()
        self._buffer = bytearray(len(_ZEROS) + 15)

    def words(self, count: int) -> Tensor:
        """Return 64 random bits each, (count,), int64."""
        words = torch.empty(count, dtype=torch.int64)
        out = words.numpy().view(np.uint8)
        for begin in range(0, out.size, len(_ZEROS)):
            size = min(len(_ZEROS), out.size - begin)
            self._encryptor.update_into(memoryview(_ZEROS)[:size], self._buffer)
            out[begin : begin + size] = np.frombuffer(self._buffer, np.uint8, size)
        return words

    def key(self) -> bytes:
        """Return the key of another stream."""
        return self.words(_KEY_BYTES // 8).numpy().tobytes()

    def seed(self) -> int:
        """Return a seed for generators of augmentation, in [0, 2**63)."""
        return int(self.words(1).item()) & (2**63 - 1)

    def uniform(self, count: int, device: torch.device | None = None) -> Tensor:
        """Return numbers in (0, 1], in steps of 2**-53, (count,), float64."""
        words = self.words(count)
        if device is not None:
            words = words.to(device)
        return _unit(words)

    def draws(self, count: int, chance: float) -> list[int]:
        """Return which of ``count`` are drawn, each by itself with the same chance (Poisson sampling)."""
        return [int(index) for index in (self.uniform(count) <= chance).nonzero()[:, 0]]

    def normal(self, count: int, device: torch.device | None = None) -> Tensor:
        """Return standard normal numbers (Box and Muller, 1958), (count,), float64.

        None is beyond 8.6, which one in 10**17 would be.

        Args:
            count: of numbers.
            device: where they are wanted; random bits come from the CPU.
        """
        half = -(-count // 2)
        device = device or torch.device("cpu")
        words = self.words(2 * half).to(device)
        numbers = torch.empty(2 * half, dtype=torch.float64, device=device)
        piece = _PIECE if device.type == "cpu" else half
        for begin in range(0, half, max(piece, 1)):
            end = min(begin + piece, half)
            radius = _unit(words[begin:end]).log_().mul_(-2).sqrt_()
            angle = _unit(words[half + begin : half + end]).mul_(2 * math.pi)
            torch.cos(angle, out=numbers[begin:end]).mul_(radius)
            torch.sin(angle, out=numbers[half + begin : half + end]).mul_(radius)
        return numbers[:count]


class SecretRandomness:
    """A new stream for each step, whose key is forgotten after it.

    The state gives the streams to come, and none of the past: one who reads it later cannot take earlier noise away
    (fast key erasure).

    Args:
        key: of 32 bytes; None: of the system's entropy.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(_KEY_BYTES)

    def step(self) -> SecretStream:
        """Return the next step's stream."""
        stream = SecretStream(self._key)
        self._key = stream.key()
        return stream

    def renew(self) -> None:
        """Add the system's entropy: whoever has the state now does not know the streams to come."""
        self._key = hashlib.sha256(self._key + secrets.token_bytes(_KEY_BYTES)).digest()

    @property
    def state(self) -> Tensor:
        """The state, to be kept at the site alone, (32,), uint8."""
        return torch.frombuffer(bytearray(self._key), dtype=torch.uint8)

    def restore(self, state: Tensor) -> None:
        """Go on from a state."""
        self._key = state.cpu().numpy().tobytes()


def _unit(words: Tensor) -> Tensor:
    """Return random words as numbers in (0, 1]."""
    numbers: Tensor = ((words >> (64 - _BITS)) & (2**_BITS - 1)).add_(1).to(torch.float64)
    return numbers.mul_(2.0**-_BITS)
