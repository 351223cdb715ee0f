"""Names of encoders, as tools write them."""

from __future__ import annotations

import re

# Name in a tool's files -> name in the catalogue of encoders.
_STANDARD = {
    # TRIDENT's
    "uni-v1": "uni",
    "uni-v2": "uni2-h",
    "conch-v1": "conch",
    "conch-v15": "conch-v1.5",
    "hoptimus0": "h-optimus-0",
    "hoptimus1": "h-optimus-1",
    "gigapath": "prov-gigapath",
    "phikon-v1": "phikon",
    # STAMP's
    "mahmood-uni": "uni",
    "mahmood-uni2": "uni2-h",
    "mahmood-conch": "conch",
    "mahmood-conch1-5": "conch-v1.5",
    "xiyuewang-ctranspath-7c998680": "ctranspath",
    # LazySlide's
    "uni2": "uni2-h",
    "conch-v1.5": "conch-v1.5",
    "h0-mini": "h0-mini",
    "phikonv2": "phikon-v2",
    "h-optimus0": "h-optimus-0",
    "h-optimus1": "h-optimus-1",
}


def standard_name(name: str) -> str:
    """Return an encoder's name in the catalogue, else in lower case."""
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    return _STANDARD.get(plain, plain)


def same_encoder(one: str, other: str) -> bool:
    """Return whether two names are of the same encoder."""
    return standard_name(one) == standard_name(other)
