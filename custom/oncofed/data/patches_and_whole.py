"""Input of jobs that draw a mask and answer for the whole image, too.

The mask is learned from patches, the other targets from whole images (``whole``), each as by itself. A case may lack a
mask: its patches are of voxels that nobody labelled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.transforms import SpatialPadd
from torch import Generator

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Patches, Preparation, Prepared
from oncofed.data.references import Unreferenced
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_image


def has_mask(case: Case) -> bool:
    """Return whether a case has a mask."""
    return isinstance(case.label, Path)


class PatchesAndWhole(BatchSource):
    """Patches with their masks, beside whole images with their targets.

    A batch holds what both sources' batches do, with the whole image as ``whole`` (batch, channel, x, y[, z]).

    Args:
        spec: the job's data.
        augmentation: how much is changed at random.
        patches: of cases with a mask.
        images: whole ones.
        unlabelled: label value of voxels that nobody labelled.
    """

    def __init__(
        self, spec: DataSpec, augmentation: Augmentation, patches: Patches, images: BatchSource, unlabelled: int
    ) -> None:
        super().__init__(spec, augmentation)
        self._patches, self._images, self._unlabelled = patches, images, unlabelled
        self._load = load_image(spec)
        self._pad = SpatialPadd("image", spatial_size=spec.patch)

    def prepare(self, case: Case) -> Prepared:
        """Return patches' source and the whole image."""
        whole = {"whole": self._images.prepare(case)["image"]}
        return {**(self._patches.prepare(case) if has_mask(case) else self._unlabelled_image(case)), **whole}

    def truth(self, case: Case) -> Prepared:
        """Return what both tell."""
        return {**self._patches.truth(case), **self._images.truth(case)}

    def settings_of(self, case: Case) -> str:
        """Return the settings that one prepared case depends on."""
        return f"{self.settings} {has_mask(case)}"

    def size(self, case: Case) -> int | None:
        """Return about how many bytes the prepared case takes."""
        sizes = [source.size(case) for source in (self._patches, self._images)]
        return None if None in sizes else sum(size for size in sizes if size)

    def draw(self, prepared: Prepared, generator: Generator) -> Prepared:
        """Return a patch, and the whole image."""
        of_patch = ("image", "label", "distance", "centres.", "outside")
        whole = {name: values for name, values in prepared.items() if not name.startswith(of_patch)}
        self._patches.device = self.device
        return {**whole, **self._patches.draw(prepared, generator)}

    def change(self, batch: Batch, generator: Generator) -> Batch:
        """Return a batch whose patches and whole images are changed at random, each by itself."""
        patches: Batch = {name: batch[name] for name in ("image", "label", "distance", "alike") if name in batch}
        whole = self._images.change({"image": batch["whole"]}, generator)["image"]
        return {**batch, **self._patches.change(patches, generator), "whole": whole}

    def _unlabelled_image(self, case: Case) -> Prepared:
        image = self._pad({"image": self._load(case)["image"]})["image"].as_tensor().contiguous()
        return self._patches.of_unlabelled(image, self._unlabelled)

    def _more_settings(self) -> list[Any]:
        return [self._patches.settings, self._images.settings, self._unlabelled]


class ReferencedAndWhole(Preparation):
    """A case for scores: its image with the mask, where it has one, and the whole image (``whole``).

    Args:
        spec: the job's data.
        images: the preparation of whole images.
        masked: the preparation of an image with its mask; None: no mask is read.
    """

    def __init__(self, spec: DataSpec, images: Preparation, masked: Preparation | None = None) -> None:
        super().__init__(spec)
        self._images, self._masked, self._bare = images, masked, Unreferenced(spec)

    def prepare(self, case: Case) -> Prepared:
        """Return image, mask and whole image."""
        return {**self._of(case).prepare(case), "whole": self._images.prepare(case)["image"]}

    def truth(self, case: Case) -> Prepared:
        """Return what the whole image's source tells."""
        return self._images.truth(case)

    def settings_of(self, case: Case) -> str:
        """Return the settings that one prepared case depends on."""
        return f"{self.settings} {self._of(case).settings}"

    def size(self, case: Case) -> int | None:
        """Return the approximate size of a prepared case in bytes."""
        sizes = [source.size(case) for source in (self._of(case), self._images)]
        return None if None in sizes else sum(size for size in sizes if size)

    def _of(self, case: Case) -> Preparation:
        return self._masked if self._masked and has_mask(case) else self._bare

    def _more_settings(self) -> list[Any]:
        return [self._images.settings]
