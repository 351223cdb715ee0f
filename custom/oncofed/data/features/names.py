"""Names of encoders, as tools write them."""

from __future__ import annotations

import re

# Name in a tool's files, with "-" between words -> name in the catalogue of encoders; nothing else lists them.
_STANDARD = {
    "uni-v1": "uni",
    "mahmood-uni": "uni",
    "uni2": "uni2-h",
    "uni-v2": "uni2-h",
    "mahmood-uni2": "uni2-h",
    "conch-v1": "conch",
    "mahmood-conch": "conch",
    "conch-v15": "conch-v1.5",
    "conch-v1-5": "conch-v1.5",
    "conch1-5": "conch-v1.5",
    "conch-1.5": "conch-v1.5",
    "mahmood-conch1-5": "conch-v1.5",
    "virchow-v2": "virchow2",
    "hoptimus0": "h-optimus-0",
    "hoptimus1": "h-optimus-1",
    "h0mini": "h0-mini",
    "prov-gigapath": "gigapath",
    "phikon-v1": "phikon",
    "phikonv2": "phikon-v2",
    "xiyuewang-ctranspath-7c998680": "ctranspath",
    "chief-ctranspath": "ctranspath",
    "resnet50-trunc": "resnet50-imagenet",
    "lunit-dino16": "lunit-vits16",
    "lunit-dino8": "lunit-vits8",
}
# Networks that tools call alike, and that differ in the numbers of a vector: TRIDENT's stops at the third stage.
_BY_SIZE = {("resnet50", 1024): "resnet50-imagenet"}


def standard_name(name: str, size: int | None = None) -> str:
    """Return an encoder's name in the catalogue, else in lower case.

    Args:
        name: as a tool or a person writes it.
        size: numbers of a vector, where they are known.
    """
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    found = _STANDARD.get(plain, plain)
    return found if size is None else _BY_SIZE.get((found, size), found)


def same_encoder(one: str, other: str, size: int | None = None) -> bool:
    """Return whether two names are of the same encoder; for ``size`` see ``standard_name``."""
    return standard_name(one, size) == standard_name(other, size)
