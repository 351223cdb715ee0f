"""Features of slides' tiles, in files of this and of other tools.

One module a tool reads its layout: ``trident`` (CLAM's, too, and what is written here), ``stamp``, ``hest``,
``lazyslide``, ``tensors``. To add one, write a function that takes the root of a file and returns ``Stored``, or None
where another tool wrote it, and name it in ``files``.
"""

from oncofed.data.features.bag import FeatureBag
from oncofed.data.features.files import open_features, read_features
from oncofed.data.features.stored import Stored
from oncofed.data.features.writing import write_features

__all__ = ["FeatureBag", "Stored", "open_features", "read_features", "write_features"]
