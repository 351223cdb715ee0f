"""Whether weights make the features that they should."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oncofed.models.encoders.entry import EncoderEntry
from oncofed.models.encoders.images import Images, known_tile
from oncofed.models.encoders.weights import LoadedEncoder

_SHOWN = 8
# Processors and libraries add up in different orders; another model differs by far more.
_SAME = 0.01


@dataclass(frozen=True)
class Checked:
    """What weights make of the known tile.

    Attributes:
        digest: of the weights.
        features: the first of them, in single precision on the CPU.
        same: whether digest or features are those that the entry keeps; None: it keeps none.
        verdict: in words.
    """

    digest: str
    features: tuple[float, ...]
    same: bool | None
    verdict: str


@torch.no_grad()
def check_encoder(entry: EncoderEntry, loaded: LoadedEncoder) -> Checked:
    """Run the known tile through an encoder, and compare with its entry."""
    device = torch.device("cpu")
    tile = torch.from_numpy(known_tile(entry.tile or entry.pixels))[None]
    found = loaded.network(Images(entry, device)(tile))[0].float()
    features = tuple(round(float(value), 4) for value in found[:_SHOWN])
    if not bool(torch.isfinite(found).all()):
        return Checked(loaded.digest, features, False, "the features are not finite: these weights cannot be used")
    if bool((found == found[0]).all()):
        why = "all features are one number, whatever the tile shows: these weights cannot be used"
        return Checked(loaded.digest, features, False, why)
    if entry.reference is None:
        verdict = (
            "no reference: nobody of this project had these weights. Compare digest and features with those of the "
            "other sites: digests have to be equal, features to two decimals"
        )
        return Checked(loaded.digest, features, None, verdict)
    expected = torch.tensor(entry.reference.features)
    apart = float((found[: len(expected)] - expected).abs().max() / expected.abs().max())
    if apart > _SAME:
        verdict = (
            f"these are not the features of {entry.title}: they differ by {apart:.1%} of the largest, expected 1 %"
        )
        return Checked(loaded.digest, features, False, verdict)
    exact = loaded.digest == entry.reference.digest
    verdict = "the same weights" if exact else "the same features, from weights with another digest (as after rounding)"
    return Checked(loaded.digest, features, True, f"{verdict} as the catalogue's reference")
