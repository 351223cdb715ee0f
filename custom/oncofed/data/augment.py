"""Random changes of a whole batch at once, on the device where it lies.

What is drawn comes from a generator on the CPU, so that a run repeats itself and a device never waits for the host; the
work is done by a few large operations instead of many small ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oncofed.data.spec import Modality

Augmentation = Literal["none", "light", "full"]
Batch = dict[str, Tensor]

# Which tensors of a batch are images, whose intensities change, and which are maps, which only move along.
_IMAGE, _LABEL = "image", "label"


@dataclass(frozen=True)
class Strength:
    """How often and how far each change goes; a probability of zero leaves it out.

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
    """Return what a job's ``training.augmentation`` means for images of its modality.

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
        generator: on the CPU; its state says all that is to come.
    """

    def __init__(self, strength: Strength, generator: Generator) -> None:
        self._strength = strength
        self._generator = generator

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch changed; every tensor of it is (batch, channel, x, y[, z]).

        ``image`` is changed in place and in its intensities. All others are maps of the same grid that move along;
        those of whole numbers keep their values.
        """
        if self._strength == Strength():
            return batch
        batch = self._mirrored(self._moved(batch))
        return {**batch, _IMAGE: self._coloured(batch[_IMAGE])}

    # --- places

    def _moved(self, batch: Batch) -> Batch:
        image = batch[_IMAGE]
        axes = image.ndim - 2
        turn = self._chosen(len(image), self._strength.rotate[0])
        resize = self._chosen(len(image), self._strength.scale[0])
        which = torch.nonzero(turn | resize).flatten()
        if not len(which):
            return batch
        angles = self._uniform(len(image), axes if axes == 3 else 1, -1, 1) * self._strength.rotate[1]
        factors = self._uniform(len(image), 1, *self._strength.scale[1:]).flatten()
        angles[~turn] = 0
        factors[~resize] = 1
        theta = _affine(angles[which], factors[which], image.shape[2:]).to(image.device, non_blocking=True)
        index = which.to(image.device, non_blocking=True)
        grid = functional.affine_grid(theta, [len(which), 1, *image.shape[2:]], align_corners=False)
        moved = {}
        for name, values in batch.items():
            mode = "bilinear" if values.is_floating_point() else "nearest"
            part = values.index_select(0, index).to(grid.dtype)
            part = functional.grid_sample(part, grid, mode=mode, padding_mode="border", align_corners=False)
            moved[name] = values.index_copy(0, index, part.to(values.dtype))
        return moved

    def _mirrored(self, batch: Batch) -> Batch:
        if not self._strength.mirror:
            return batch
        image = batch[_IMAGE]
        for axis in range(2, image.ndim):
            which = torch.nonzero(self._chosen(len(image), self._strength.mirror)).flatten()
            if len(which):
                index = which.to(image.device, non_blocking=True)
                batch = {n: v.index_copy(0, index, v.index_select(0, index).flip(axis)) for n, v in batch.items()}
        return batch

    # --- intensities, in nnU-Net's order

    def _coloured(self, image: Tensor) -> Tensor:
        s, count = self._strength, len(image)
        if s.noise[0]:
            deviation = self._uniform(count, 1, 0, s.noise[1]) * self._chosen(count, s.noise[0])[:, None]
            # Noise is drawn on the CPU only where the images are: a GPU would wait for it.
            noise = torch.randn(image.shape, generator=self._noise_generator(image.device), device=image.device)
            image = torch.addcmul(image, noise, self._per_sample(deviation, image))
        if s.blur[0]:
            image = self._blurred(image)
        if s.brightness[0]:
            image = image * self._per_sample(self._factors(count, s.brightness), image)
        if s.contrast[0]:
            mean = image.mean(dim=_places(image), keepdim=True)
            low, high = (image.amin(_places(image), keepdim=True), image.amax(_places(image), keepdim=True))
            factors = self._per_sample(self._factors(count, s.contrast), image)
            spread = torch.minimum(torch.maximum((image - mean) * factors + mean, low), high)
            image = torch.where(factors == 1, image, spread)
        if s.coarse[0]:
            image = self._coarser(image)
        for (share, low_gamma, high_gamma), sign in ((s.inverted_gamma, -1), (s.gamma, 1)):
            if share:
                image = self._bent(image * sign, (share, low_gamma, high_gamma)) * sign
        if s.tint[0]:
            shift = self._uniform(count, image.shape[1], -s.tint[1], s.tint[1])
            image = image + self._per_sample(shift * self._chosen(count, s.tint[0])[:, None], image)
        return image

    def _blurred(self, image: Tensor) -> Tensor:
        which = torch.nonzero(self._chosen(len(image), self._strength.blur[0])).flatten()
        sigmas = self._uniform(len(image), 1, *self._strength.blur[1:]).flatten()
        if not len(which):
            return image
        index = which.to(image.device, non_blocking=True)
        radius = math.ceil(3 * self._strength.blur[2])
        offsets = torch.arange(-radius, radius + 1)
        kernels = torch.exp(-0.5 * (offsets / sigmas[which, None]) ** 2)
        kernels = (kernels / kernels.sum(1, keepdim=True)).to(image.device, non_blocking=True)
        part = image.index_select(0, index)
        channels, axes = part.shape[1], part.ndim - 2
        for axis in range(axes):
            # Every image of the batch, with each of its channels, is a group with a kernel of its own.
            shape = [1] * axes
            shape[axis] = len(offsets)
            weight = kernels.repeat_interleave(channels, 0).view(len(which) * channels, 1, *shape)
            flat = part.reshape(1, len(which) * channels, *part.shape[2:])
            padding = [0, 0] * axes
            padding[2 * (axes - 1 - axis)] = padding[2 * (axes - 1 - axis) + 1] = radius
            flat = functional.pad(flat, padding, mode="replicate")
            convolve = functional.conv3d if axes == 3 else functional.conv2d
            part = convolve(flat, weight, groups=len(which) * channels).view_as(part)
        return image.index_copy(0, index, part)

    def _coarser(self, image: Tensor) -> Tensor:
        which = torch.nonzero(self._chosen(len(image), self._strength.coarse[0])).flatten().tolist()
        shares = self._uniform(len(image), 1, self._strength.coarse[1], 1).flatten().tolist()
        mode = "trilinear" if image.ndim == 5 else "bilinear"
        for number in which:
            size = [max(1, round(side * shares[number])) for side in image.shape[2:]]
            small = functional.interpolate(image[number : number + 1], size=size, mode="nearest")
            image[number] = functional.interpolate(small, size=image.shape[2:], mode=mode)[0]
        return image

    def _bent(self, image: Tensor, setting: tuple[float, float, float]) -> Tensor:
        """Raise intensities to a power and keep their mean and spread."""
        exponents = self._per_sample(self._factors(len(image), setting), image)
        places = _places(image)
        mean, spread = image.mean(places, keepdim=True), image.std(places, keepdim=True)
        low = image.amin(places, keepdim=True)
        reach = (image.amax(places, keepdim=True) - low).clamp_min(1e-7)
        bent = ((image - low) / reach).clamp_min(0) ** exponents * reach + low
        bent = (bent - bent.mean(places, keepdim=True)) / bent.std(places, keepdim=True).clamp_min(1e-7)
        # Where nothing was drawn the exponent is one, and the image stays as it is to the last bit.
        return torch.where(exponents == 1, image, bent * spread + mean)

    # --- drawing

    def _chosen(self, count: int, probability: float) -> Tensor:
        return torch.rand(count, generator=self._generator) < probability

    def _uniform(self, count: int, columns: int, low: float, high: float) -> Tensor:
        return torch.rand(count, columns, generator=self._generator) * (high - low) + low

    def _factors(self, count: int, setting: tuple[float, float, float]) -> Tensor:
        chosen = self._chosen(count, setting[0])[:, None]
        return torch.where(chosen, self._uniform(count, 1, *setting[1:]), torch.ones(count, 1))

    def _per_sample(self, values: Tensor, image: Tensor) -> Tensor:
        return values.to(image.device, non_blocking=True).view(*values.shape, *[1] * (image.ndim - 2))

    def _noise_generator(self, device: torch.device) -> Generator:
        if device.type == "cpu":
            return self._generator
        seed = int(torch.randint(2**62, (), generator=self._generator))
        return torch.Generator(device).manual_seed(seed)


def _places(image: Tensor) -> list[int]:
    return list(range(2, image.ndim))


def _affine(angles: Tensor, factors: Tensor, shape: torch.Size) -> Tensor:
    """Return what ``affine_grid`` wants, from where a voxel is to where it comes from.

    Args:
        angles: (n, 3) or, of flat images, (n, 1), in radians.
        factors: (n,), by which things become larger.
        shape: of the images: angles are meant on the grid of voxels, whatever the sides' lengths.

    Returns:
        (n, axes, axes + 1) float32, in the order of ``grid_sample``: last axis first.
    """
    axes = len(shape)
    turn = torch.eye(axes).expand(len(angles), axes, axes).clone()
    planes = ((1, 2), (0, 2), (0, 1)) if axes == 3 else ((0, 1),)
    for column, (one, two) in enumerate(planes):
        plane = torch.eye(axes).expand(len(angles), axes, axes).clone()
        cos, sin = angles[:, column].cos(), angles[:, column].sin()
        plane[:, one, one], plane[:, two, two] = cos, cos
        plane[:, one, two], plane[:, two, one] = -sin, sin
        turn = turn @ plane
    turn = turn / factors[:, None, None]
    sides = torch.tensor(list(shape)[::-1], dtype=torch.float32)
    theta = turn * (sides[None, None, :] / sides[None, :, None])
    return torch.cat([theta, torch.zeros(len(angles), axes, 1)], dim=2)
