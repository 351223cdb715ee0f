"""Batch augmentation on the batch's device.

Random numbers come from a generator on the CPU, so that a run can be repeated and a device never waits for the host;
the work is done by a few large operations instead of many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oncofed.data.spatial import Moves, theta_of
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
        plane: largest angle of flat images, and of volumes with few thick slices in the plane of the slices, where the
            image goes on around a patch; that of ``rotate`` elsewhere. Long flat patches are turned by 15° at most.
        scale: (probability, smallest and largest distance between the voxels that are read; above one makes things
            smaller).
        mirror: probability of each axis.
        noise: (probability, largest standard deviation); images have a standard deviation of about one.
        blur: (probability of each channel, smallest and largest sigma in voxels along each axis).
        brightness: (probability, smallest and largest factor of all intensities).
        contrast: (probability, smallest and largest factor of the distance from the mean).
        coarse: (probability of each channel, smallest share of the resolution that is left).
        gamma: (probability, smallest and largest exponent).
        inverted_gamma: the same on the negative.
        tint: (probability, largest shift of a channel by itself).
        together: channels change alike in brightness, contrast and gamma, as those of a colour do.
    """

    rotate: tuple[float, float] = (0.0, 0.0)
    plane: float = 0.0
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
    together: bool = False

    @property
    def moves(self) -> Moves:
        """The spatial changes other than mirroring, of patches that the image goes on around."""
        return Moves(self.rotate, self.scale, self.plane)

    @property
    def moves_of_whole(self) -> Moves:
        """The same of whole images, around which nothing is known."""
        return replace(self.moves, plane=min(self.plane, self.rotate[1]))

    @property
    def unmoved(self) -> Strength:
        """The same changes without ``moves``."""
        return replace(self, rotate=(0.0, 0.0), scale=(0.0, 1.0, 1.0))


def strength(augmentation: Augmentation, modality: Modality) -> Strength:
    """Return a job's augmentation for a modality.

    "full" is nnU-Net's set as its release 2.8 has it (Isensee et al., Nature Methods 2021), with tints of single
    channels for microscopy; "light" is a part of it for short runs.
    """
    microscopy = modality == "microscopy"
    # A chest has its heart on the left and its head above; a field of a slide has no top and no left.
    upright = modality == "xray"
    if augmentation == "none":
        return Strength()
    if augmentation == "light":
        return Strength(
            rotate=(0.3, 0.15),
            plane=0.15,
            scale=(0.3, 0.9, 1.1),
            mirror=0.5 if microscopy else 0.0,
            noise=(0.15, 0.1),
            brightness=(0.3, 0.85, 1.15),
            gamma=(0.2 if modality == "mri" else 0.0, 0.7, 1.5),
            together=microscopy,
        )
    return Strength(
        rotate=(0.2, math.pi / 6),
        plane=math.pi / 6 if upright else math.pi,
        scale=(0.2, 0.7, 1.4),
        mirror=0.0 if upright else 0.5,
        # What nnU-Net calls the noise's variance is its standard deviation.
        noise=(0.1, 0.1),
        # Of 0.2 and 0.25 of the images half of the channels.
        blur=(0.1, 0.5, 1.0),
        brightness=(0.15, 0.75, 1.25),
        contrast=(0.15, 0.75, 1.25),
        coarse=(0.125, 0.5),
        gamma=(0.3, 0.7, 1.5),
        inverted_gamma=(0.1, 0.7, 1.5),
        tint=(0.3 if microscopy else 0.0, 0.3),
        together=microscopy,
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
        self._change(batch, s.noise[0], self._noisy)
        self._change(batch, s.blur[0], self._blurred, each_channel=True)
        self._change(batch, s.brightness[0], lambda image: image * self._about_one(image, *s.brightness[1:]))
        self._change(batch, s.contrast[0], self._stretched)
        self._change(batch, s.coarse[0], self._coarser, each_channel=True)
        self._change(batch, s.inverted_gamma[0], lambda image: -self._gamma_corrected(-image, *s.inverted_gamma[1:]))
        self._change(batch, s.gamma[0], lambda image: self._gamma_corrected(image, *s.gamma[1:]))
        tint = (-s.tint[1], s.tint[1])
        self._change(batch, s.tint[0], lambda image: image + self._drawn(image, *tint, columns=image.shape[1]))
        return batch

    def _change(
        self, batch: Batch, probability: float, change: Callable[[Tensor], Tensor], each_channel: bool = False
    ) -> None:
        """Change the intensities of the chosen images, or channels, in place."""
        image = batch[_IMAGE]
        # A view: channels as images of one channel.
        values = image.view(-1, 1, *image.shape[2:]) if each_channel else image
        for chosen, index in self._chosen({_IMAGE: values}, probability):
            chosen.index_copy_(0, index, change(chosen.index_select(0, index)))

    # --- spatial changes

    def _move(self, batch: Batch) -> None:
        image = batch[_IMAGE]
        sides = image.shape[2:]
        which, matrices = self._strength.moves_of_whole.matrices(len(image), sides, self._generator)
        if not len(which):
            return
        theta = theta_of(matrices, sides, sides, [(side - 1) / 2 for side in sides])
        theta, index = (values.to(image.device, non_blocking=True) for values in (theta, which))
        grid = functional.affine_grid(theta, [len(which), 1, *sides], align_corners=False)
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
        axes, groups = image.ndim - 2, image.shape[0] * image.shape[1]
        radius = math.ceil(3 * self._strength.blur[2])
        offsets = torch.arange(-radius, radius + 1)
        for axis in range(axes):
            sigmas = self._uniform(len(image), 1, *self._strength.blur[1:])
            kernels = torch.exp(-0.5 * (offsets / sigmas) ** 2)
            kernels = (kernels / kernels.sum(1, keepdim=True)).to(image.device, non_blocking=True)
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
        stretched = (image - mean) * self._about_one(image, *self._strength.contrast[1:]) + mean
        return torch.minimum(torch.maximum(stretched, low), high)

    def _coarser(self, image: Tensor) -> Tensor:
        shares = self._uniform(len(image), 1, self._strength.coarse[1], 1).flatten().tolist()
        mode = "trilinear" if image.ndim == 5 else "bilinear"
        for number, share in enumerate(shares):
            size = [max(1, round(side * share)) for side in image.shape[2:]]
            small = functional.interpolate(image[number : number + 1], size=size, mode="nearest-exact")
            image[number] = functional.interpolate(small, size=image.shape[2:], mode=mode)[0]
        return image

    def _gamma_corrected(self, image: Tensor, low_exponent: float, high_exponent: float) -> Tensor:
        """Apply gamma, keeping mean and spread."""
        places = _places(image)
        mean, spread = image.mean(places, keepdim=True), image.std(places, keepdim=True)
        low = image.amin(places, keepdim=True)
        reach = (image.amax(places, keepdim=True) - low).clamp_min(1e-7)
        corrected = ((image - low) / reach).clamp_min(0) ** self._about_one(image, low_exponent, high_exponent)
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

    def _about_one(self, image: Tensor, low: float, high: float) -> Tensor:
        """Return random factors, half of them below one; of each channel its own, if channels differ."""
        columns = 1 if self._strength.together else image.shape[1]
        below, place = (self._uniform(len(image), columns, 0, 1) for _ in range(2))
        values = torch.where(below < 0.5, low + place * (1 - low), 1 + place * (high - 1))
        return values.to(image.device, non_blocking=True).view(*values.shape, *[1] * (image.ndim - 2))

    def _on(self, device: torch.device) -> Generator:
        if device.type == "cpu":
            return self._generator
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.Generator(device).manual_seed(seed)


def _places(image: Tensor) -> list[int]:
    return list(range(2, image.ndim))
