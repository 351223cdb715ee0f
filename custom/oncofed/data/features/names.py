"""Names of encoders, as tools write them."""

from __future__ import annotations

import re

# Name in a tool's files, with "-" between words -> name in the catalogue of encoders.
_STANDARD = {
    "uni-v1": "uni",
    "mahmood-uni": "uni",
    "uni2": "uni2-h",
    "uni-v2": "uni2-h",
    "mahmood-uni2": "uni2-h",
    "conch-v1": "conch",
    "mahmood-conch": "conch",
    "conch-v15": "conch-v1.5",
    "conch1-5": "conch-v1.5",
    "conch-1.5": "conch-v1.5",
    "mahmood-conch1-5": "conch-v1.5",
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


def standard_name(name: str) -> str:
    """Return an encoder's name in the catalogue, else in lower case."""
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    return _STANDARD.get(plain, plain)


def same_encoder(one: str, other: str) -> bool:
    """Return whether two names are of the same encoder."""
    return standard_name(one) == standard_name(other)
