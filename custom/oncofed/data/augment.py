"""Batch augmentation on the batch's device.

Random numbers come from a generator on the CPU, so that a run can be repeated and a device never waits for the host;
the work is done by a few large operations instead of many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oncofed.data.spec import Modality

Augmentation = Literal["none", "light", "full"]
Batch = dict[str, Tensor]

# The only tensor whose intensities change; the others are maps that undergo the spatial changes.
_IMAGE = "image"


@dataclass(frozen=True)
class Strength:
    """Probability and strength of each change; zero: never.

    Attributes:
        rotate: (probability, largest angle in radians about each axis).
        scale: (probability, smallest and largest factor).
        mirror: probability of each axis.
        noise: (probability, largest standard deviation); images have a standard deviation of about one.
        blur: (probability, smallest and largest sigma in voxels).
        brightness: (probability, smallest and largest factor of all intensities).
        contrast: (probability, smallest and largest factor of the distance from the mean).
        coarse: (probability, smallest share of the resolution that is left).
        gamma: (probability, smallest and largest exponent).
        inverted_gamma: the same on the negative.
        tint: (probability, largest shift of a channel by itself).
    """

    rotate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float, float] = (0.0, 1.0, 1.0)
    mirror: float = 0.0
    noise: tuple[float, float] = (0.0, 0.0)
    blur: tuple[float, float, float] = (0.0, 0.0, 0.0)
    brightness: tuple[float, float, float] = (0.0, 1.0, 1.0)
    contrast: tuple[float, float, float] = (0.0, 1.0, 1.0)
    coarse: tuple[float, float] = (0.0, 1.0)
    gamma: tuple[float, float, float] = (0.0, 1.0, 1.0)
    inverted_gamma: tuple[float, float, float] = (0.0, 1.0, 1.0)
    tint: tuple[float, float] = (0.0, 0.0)


def strength(augmentation: Augmentation, modality: Modality) -> Strength:
    """Return a job's augmentation for a modality.

    "full" is nnU-Net's set (Isensee et al., Nature Methods 2021, supplementary note 4), with tints of single channels
    for microscopy; "light" is a part of it for short runs.
    """
    microscopy = modality == "microscopy"
    if augmentation == "none":
        return Strength()
    if augmentation == "light":
        return Strength(
            rotate=(0.3, 0.15),
            scale=(0.3, 0.9, 1.1),
            # A field of a slide has no top and no left.
            mirror=0.5 if microscopy else 0.0,
            noise=(0.15, 0.1),
            brightness=(0.3, 0.85, 1.15),
            gamma=(0.2 if modality == "mri" else 0.0, 0.7, 1.5),
        )
    return Strength(
        rotate=(0.2, math.pi / 6),
        scale=(0.2, 0.7, 1.4),
        # A chest has its heart on the left.
        mirror=0.0 if modality == "xray" else 0.5,
        noise=(0.1, 0.3),
        blur=(0.2, 0.5, 1.0),
        brightness=(0.15, 0.75, 1.25),
        contrast=(0.15, 0.75, 1.25),
        coarse=(0.25, 0.5),
        gamma=(0.3, 0.7, 1.5),
        inverted_gamma=(0.1, 0.7, 1.5),
        tint=(0.3 if microscopy else 0.0, 0.3),
    )


class Augment:
    """Changes batches at random.

    Args:
        strength: of the changes.
        generator: on the CPU; its state determines all further changes.
        stain: changes the colours of images (batch, 3, x, y) by the same generator, before all else does; None: no.
    """

    def __init__(self, strength: Strength, generator: Generator, stain: Callable[..., Tensor] | None = None) -> None:
        self._strength = strength
        self._generator = generator
        self._stain = stain

    def __call__(self, batch: Batch) -> Batch:
        """Augment a batch in place, and return it.

        Each tensor is (batch, channel, x, y[, z]).

        Intensities of ``image`` change too. The others are maps on the same grid, which undergo the spatial changes
        alone; integer maps keep their values.
        """
        s = self._strength
        self._move(batch)
        for axis in range(2, batch[_IMAGE].ndim):
            for values, index in self._chosen(batch, s.mirror):
                values.index_copy_(0, index, values.index_select(0, index).flip(axis))
        if self._stain:
            batch[_IMAGE].copy_(self._stain(batch[_IMAGE], generator=self._generator))
        # Intensities, in nnU-Net's order.
        changes: list[tuple[float, Callable[[Tensor], Tensor]]] = [
            (s.noise[0], self._noisy),
            (s.blur[0], self._blurred),
            (s.brightness[0], lambda image: image * self._drawn(image, *s.brightness[1:])),
            (s.contrast[0], self._stretched),
            (s.coarse[0], self._coarser),
            (s.inverted_gamma[0], lambda image: -self._gamma_corrected(-image, *s.inverted_gamma[1:])),
            (s.gamma[0], lambda image: self._gamma_corrected(image, *s.gamma[1:])),
            (s.tint[0], lambda image: image + self._drawn(image, -s.tint[1], s.tint[1], image.shape[1])),
        ]
        for probability, change in changes:
            for image, index in self._chosen({_IMAGE: batch[_IMAGE]}, probability):
                image.index_copy_(0, index, change(image.index_select(0, index)))
        return batch

    # --- spatial changes

    def _move(self, batch: Batch) -> None:
        image, s = batch[_IMAGE], self._strength
        axes = image.ndim - 2
        turn, resize = (torch.rand(len(image), generator=self._generator) < p for p in (s.rotate[0], s.scale[0]))
        which = torch.nonzero(turn | resize).flatten()
        if not len(which):
            return
        angles = self._uniform(len(which), axes if axes == 3 else 1, -1, 1) * s.rotate[1]
        factors = self._uniform(len(which), 1, *s.scale[1:]).flatten()
        angles[~turn[which]] = 0
        factors[~resize[which]] = 1
        theta = _affine(angles, factors, image.shape[2:]).to(image.device, non_blocking=True)
        index = which.to(image.device, non_blocking=True)
        grid = functional.affine_grid(theta, [len(which), 1, *image.shape[2:]], align_corners=False)
        for values in batch.values():
            mode = "bilinear" if values.is_floating_point() else "nearest"
            part = values.index_select(0, index).to(grid.dtype)
            part = functional.grid_sample(part, grid, mode=mode, padding_mode="border", align_corners=False)
            values.index_copy_(0, index, part.to(values.dtype))

    # --- intensities of the chosen samples

    def _noisy(self, image: Tensor) -> Tensor:
        # Drawn on the device: a GPU would wait for noise from the CPU.
        noise = torch.randn(image.shape, generator=self._on(image.device), device=image.device)
        return torch.addcmul(image, noise, self._drawn(image, 0, self._strength.noise[1]))

    def _blurred(self, image: Tensor) -> Tensor:
        sigmas = self._uniform(len(image), 1, *self._strength.blur[1:])
        radius = math.ceil(3 * self._strength.blur[2])
        offsets = torch.arange(-radius, radius + 1)
        kernels = torch.exp(-0.5 * (offsets / sigmas) ** 2)
        kernels = (kernels / kernels.sum(1, keepdim=True)).to(image.device, non_blocking=True)
        axes, groups = image.ndim - 2, image.shape[0] * image.shape[1]
        for axis in range(axes):
            # Each channel of each image is a group with its own kernel.
            shape = [1] * axes
            shape[axis] = len(offsets)
            weight = kernels.repeat_interleave(image.shape[1], 0).view(groups, 1, *shape)
            padding = [0, 0] * axes
            padding[2 * (axes - 1 - axis)] = padding[2 * (axes - 1 - axis) + 1] = radius
            padded = functional.pad(image.reshape(1, groups, *image.shape[2:]), padding, mode="replicate")
            convolve = functional.conv3d if axes == 3 else functional.conv2d
            image = convolve(padded, weight, groups=groups).view_as(image)
        return image

    def _stretched(self, image: Tensor) -> Tensor:
        places = _places(image)
        mean = image.mean(places, keepdim=True)
        low, high = image.amin(places, keepdim=True), image.amax(places, keepdim=True)
        stretched = (image - mean) * self._drawn(image, *self._strength.contrast[1:]) + mean
        return torch.minimum(torch.maximum(stretched, low), high)

    def _coarser(self, image: Tensor) -> Tensor:
        shares = self._uniform(len(image), 1, self._strength.coarse[1], 1).flatten().tolist()
        mode = "trilinear" if image.ndim == 5 else "bilinear"
        for number, share in enumerate(shares):
            size = [max(1, round(side * share)) for side in image.shape[2:]]
            small = functional.interpolate(image[number : number + 1], size=size, mode="nearest")
            image[number] = functional.interpolate(small, size=image.shape[2:], mode=mode)[0]
        return image

    def _gamma_corrected(self, image: Tensor, low_exponent: float, high_exponent: float) -> Tensor:
        """Apply gamma, keeping mean and spread."""
        places = _places(image)
        mean, spread = image.mean(places, keepdim=True), image.std(places, keepdim=True)
        low = image.amin(places, keepdim=True)
        reach = (image.amax(places, keepdim=True) - low).clamp_min(1e-7)
        corrected = ((image - low) / reach).clamp_min(0) ** self._drawn(image, low_exponent, high_exponent)
        centred = corrected - corrected.mean(places, keepdim=True)
        return centred * (spread / corrected.std(places, keepdim=True).clamp_min(1e-7)) + mean

    # --- random numbers

    def _chosen(self, batch: Batch, probability: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the chosen samples of each tensor of a batch."""
        if not probability:
            return
        count = len(batch[_IMAGE])
        which = torch.nonzero(torch.rand(count, generator=self._generator) < probability).flatten()
        if len(which):
            for values in batch.values():
                yield values, which.to(values.device, non_blocking=True)

    def _uniform(self, count: int, columns: int, low: float, high: float) -> Tensor:
        return torch.rand(count, columns, generator=self._generator) * (high - low) + low

    def _drawn(self, image: Tensor, low: float, high: float, columns: int = 1) -> Tensor:
        """Return random numbers by image or channel, broadcastable."""
        values = self._uniform(len(image), columns, low, high).to(image.device, non_blocking=True)
        return values.view(*values.shape, *[1] * (image.ndim - 2))

    def _on(self, device: torch.device) -> Generator:
        if device.type == "cpu":
            return self._generator
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.Generator(device).manual_seed(seed)


def _places(image: Tensor) -> list[int]:
    return list(range(2, image.ndim))


def _affine(angles: Tensor, factors: Tensor, shape: torch.Size) -> Tensor:
    """Return the matrix for ``affine_grid``, from output to input.

    Args:
        angles: (n, 3) or, of flat images, (n, 1), in radians.
        factors: (n,), of enlargement.
        shape: of the images; angles apply to the voxel grid, whatever the sides' lengths.

    Returns:
        (n, axes, axes + 1) float32, in the order of ``grid_sample``: last axis first.
    """
    axes = len(shape)
    turn = torch.eye(axes).expand(len(angles), axes, axes).clone()
    planes = ((1, 2), (0, 2), (0, 1)) if axes == 3 else ((0, 1),)
    for column, (first, second) in enumerate(planes):
        plane = torch.eye(axes).expand(len(angles), axes, axes).clone()
        cos, sin = angles[:, column].cos(), angles[:, column].sin()
        plane[:, first, first], plane[:, second, second] = cos, cos
        plane[:, first, second], plane[:, second, first] = -sin, sin
        turn = turn @ plane
    turn = turn / factors[:, None, None]
    sides = torch.tensor(list(shape)[::-1], dtype=torch.float32)
    theta = turn * (sides[None, None, :] / sides[None, :, None])
    return torch.cat([theta, torch.zeros(len(angles), axes, 1)], dim=2)
