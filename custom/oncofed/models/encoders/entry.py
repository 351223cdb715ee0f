"""What the catalogue of encoders says."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from oncofed.data.features.names import standard_name
from oncofed.errors import SpecError
from oncofed.settings import StrictModel

_CATALOGUE = Path(__file__).with_name("catalogue.yaml")
_Triple = tuple[float, float, float]
# Of ImageNet, on which most encoders' input is normalised.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# What determines an encoder's features beside its weights.
_DETERMINES = frozenset(
    {
        "family",
        "architecture",
        "arguments",
        "positions",
        "pooling",
        "features",
        "pixels",
        "resize",
        "interpolation",
        "mean",
        "std",
    }
)


class Reference(StrictModel):
    """What an encoder makes of the known tile."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the weights that made it")
    features: tuple[float, ...] = Field(min_length=8, description="the first of them, in single precision on a CPU")


class EncoderEntry(StrictModel):
    """One encoder of tiles: what it is, what it takes, where to get it."""

    name: str
    title: str
    family: Literal["colour", "monai_resnet", "resnet", "vit", "ctranspath", "conch", "conch_v1.5"] = Field(
        description="which function of networks.py builds it"
    )
    architecture: str = Field("", description="name of the definition in the installed library: timm, or MONAI")
    arguments: dict[str, Any] = Field(default_factory=dict, description="of the definition, beyond its own")
    positions: Literal["exact", "bilinear", "by way of 224"] = Field(
        "exact", description="how a position embedding of another size becomes that of the network; exact: refused"
    )
    pooling: Literal["class", "class and mean"] = Field(
        "class", description="class: the network's own output; class and mean: class token and mean of the patches"
    )
    features: int = Field(ge=1, description="numbers of a vector")
    weights_of: str | None = Field(None, description="the entry whose weights it uses; null: it has its own")
    unused: tuple[str, ...] = Field((), description="beginnings of names in its files that features do not need")
    pixels: Annotated[int, Field(ge=16)] | None = Field(None, description="side of its input; null: any")
    resize: Annotated[int, Field(ge=16)] | None = Field(
        None, description="side that tiles get before the middle is cut out; null: that of its input"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="of tiles of another size")
    mean: _Triple = Field(_MEAN, description="subtracted from red, green and blue, 0 to 1")
    std: _Triple = Field(_DEVIATION, description="that they are divided by")
    tile: int | None = Field(None, description="pixels a side as the field cuts tiles for it; null: any")
    mpp: float | None = Field(None, description="microns per pixel of such a tile; null: any")
    licence: str
    source: str = Field("", description="where to get the weights")
    gated: bool = Field(False, description="the maker hands them out on request")
    digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the weights it was checked with; null: nobody here had them"
    )
    reference: Reference | None = Field(None, description="null: nobody here had the weights")

    @property
    def has_weights(self) -> bool:
        """Whether it needs a file."""
        return self.family != "colour"

    @property
    def recipe(self) -> str:
        """SHA-256 of what determines its features beside weights: the network, and how tiles become its input."""
        values = self.model_dump(mode="json", include=set(_DETERMINES))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@cache
def catalogue() -> Mapping[str, EncoderEntry]:
    """Return all entries by name."""
    entries = yaml.safe_load(_CATALOGUE.read_text(encoding="utf-8"))
    return {name: EncoderEntry(name=name, **values) for name, values in entries.items()}


@cache
def catalogue_name(name: str) -> str | None:
    """Return the name by which the catalogue has an encoder.

    Args:
        name: its own, or what TRIDENT, CLAM, STAMP or LazySlide call it, in any case; None: it is not in it.

    Example:
        >>> catalogue_name("UNI_v1"), catalogue_name("hoptimus1"), catalogue_name("titan")
        ('uni', 'h-optimus-1', None)
    """
    wanted = standard_name(name)
    return wanted if wanted in catalogue() else None


def find_entry(name: str) -> EncoderEntry:
    """Return an encoder's entry.

    Raises:
        SpecError: the catalogue has none of this name.
    """
    entries = catalogue()
    if name in entries:
        return entries[name]
    meant = catalogue_name(name) or next(iter(difflib.get_close_matches(name.lower(), entries, 1)), None)
    question = f"; did you mean {meant}?" if meant else ""
    raise SpecError(f"the catalogue has no encoder {name}{question} oncofed data encoders lists all")
