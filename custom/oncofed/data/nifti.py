"""Reading NIfTI. MONAI's ``LoadImage`` tries other readers where the one asked for fails; this one never guesses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from monai.utils.enums import MetaKeys, SpaceKeys


def read_nifti(path: Path | str) -> MetaTensor:
    """Read one volume: (1, x, y, z) float32 with its affine (RAS+, mm); scale slope and intercept are applied.

    Raises:
        nibabel.filebasedimages.ImageFileError, OSError, EOFError, zlib.error: the file is broken.
    """
    image = nib.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    meta = {MetaKeys.SPACE: SpaceKeys.RAS, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
    return MetaTensor(values[None], affine=np.asarray(image.affine, dtype=np.float64), meta=meta)


class ReadNiftid(MapTransform):
    """Replaces paths by volumes, for use in a ``Compose``."""

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with each of the keys read from its file."""
        read = dict(data)
        for key in self.key_iterator(read):
            read[key] = read_nifti(read[key])
        return read
