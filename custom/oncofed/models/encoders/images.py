"""From tiles to what an encoder takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from oncofed.models.encoders.entry import EncoderEntry

_KNOWN_SIDE = 224


class Images:
    """Resizes and normalises tiles as an encoder's maker does.

    A tile of another size is resized, as TRIDENT and the makers' own examples do: the field cuts tiles of 256 pixels
    for encoders that take 224, and features from elsewhere were made that way. What is resized has its resolution
    changed too; the catalogue says which size and resolution an encoder is used with.

    Args:
        entry: of the encoder.
        device: of the tiles.
    """

    def __init__(self, entry: EncoderEntry, device: torch.device) -> None:
        self._side, self._mode = entry.resize or entry.pixels, entry.interpolation
        self._cut = entry.pixels
        self._mean, self._deviation = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (entry.mean, entry.std)
        )

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return (tile, 3, y, x) float32 of (tile, y, x, 3) uint8, with channels last in memory."""
        images = tiles.permute(0, 3, 1, 2)
        if self._side and images.shape[-1] != self._side:
            images = self._resized(images, self._side)
        if self._cut and images.shape[-1] > self._cut:
            first = (images.shape[-1] - self._cut) // 2
            images = images[..., first : first + self._cut, first : first + self._cut]
        return images.float().div_(255).sub_(self._mean).div_(self._deviation)

    def _resized(self, images: Tensor, side: int) -> Tensor:
        """Return images as makers' transforms resize them: in whole values of 8 bits, without aliasing."""
        size = (side, side)
        if images.device.type == "cpu":
            return functional.interpolate(images, size, mode=self._mode, antialias=True)
        found = functional.interpolate(images.float(), size, mode=self._mode, antialias=True)
        return found.round_().clamp_(0, 255)


def known_tile(side: int | None = None) -> NDArray[np.uint8]:
    """Return a picture like stained tissue, the same on each machine.

    Whole numbers alone: dark nuclei of several sizes on pink fibres. It is no tissue, and shows whether two files make
    the same features, not whether these are good.

    Args:
        side: in pixels; None: 224.

    Returns:
        (side, side, 3) uint8.
    """
    side = side or _KNOWN_SIDE
    y, x = np.mgrid[:side, :side].astype(np.int64)
    fibres = (x * 5 + y * 3 + (x * y) // 17) % 29
    pixels = np.stack([228 - fibres // 2, 158 + fibres, 196 + fibres // 3], axis=-1)
    for number in range((side // 16) ** 2):
        # Multipliers of Knuth's for places that look random.
        place = (number * 2654435761) % 2**32
        row, column, size = place % side, (place >> 9) % side, 9 + (place >> 21) % 40
        near = np.s_[max(row - 7, 0) : row + 8, max(column - 7, 0) : column + 8]
        inside = (y[near] - row) ** 2 * (1 + number % 2) + (x[near] - column) ** 2 < size
        pixels[near][inside] = (92 + number % 31, 60 + number % 23, 138 + number % 17)
    return pixels.astype(np.uint8)
