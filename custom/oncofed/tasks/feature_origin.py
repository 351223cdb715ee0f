"""Which encoder made a site's features, and whether it is the job's.

A slide may bring features that another tool made. They count where encoder, size, tile and resolution are the job's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from oncofed.data.case import Case
from oncofed.data.features.names import same_encoder
from oncofed.data.features.survey import SAME_RESOLUTION
from oncofed.data.grouping import counted
from oncofed.data.manifest import FeatureFacts
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError
from oncofed.models.encoders import catalogue
from oncofed.tasks.encoder import EncoderSpec, feature_count

_SHOWN = 12  # characters of a digest that tell it from others


def has_weights(encoder: EncoderSpec) -> bool:
    """Return whether an encoder has weights, by which two of one name may differ."""
    entry = catalogue().get(encoder.network)
    return entry is None or entry.has_weights


def feature_faults(facts: FeatureFacts, encoder: EncoderSpec, data: DataSpec) -> Iterator[str]:
    """Yield why a slide's features are not the job's; nothing where they are.

    Args:
        facts: of the features.
        encoder: the job's.
        data: the job's, for tile and resolution, where both are known.
    """
    size = feature_count(encoder)
    if data.stain.normalise != "none":
        yield f"features were made of tiles as they are, and the job normalises stains ({data.stain.normalise})"
        return
    if not same_encoder(facts.encoder, encoder.network):
        yield f"features are of the encoder {facts.encoder}, the job's is {encoder.network} (task.encoder.network)"
        return
    entry = catalogue().get(encoder.network)
    if entry and facts.recipe and facts.recipe != entry.recipe:
        yield (
            f"features were made by another oncofed, which built or fed {encoder.network} otherwise than this one. "
            "Extract them again"
        )
    if facts.size != size:
        yield f"features have {facts.size} numbers a vector, those of {encoder.network} have {size}"
    if encoder.digest and facts.digest is None:
        yield (
            f"features do not say which weights made them, the job pins {encoder.digest[:_SHOWN]}… "
            "(task.encoder.digest). Say it when registering, or extract them here with those weights"
        )
    elif encoder.digest and facts.digest != encoder.digest:
        yield (
            f"features are of the weights {str(facts.digest)[:_SHOWN]}…, the job pins {encoder.digest[:_SHOWN]}… "
            "(task.encoder.digest). Extract them with those weights"
        )
    if facts.level == "slide":
        return
    if facts.tile and facts.tile != data.patch[0]:
        yield f"features are of tiles of {facts.tile} pixels, the job's have {data.patch[0]} (data.patch)"
    if facts.mpp and data.spacing and abs(facts.mpp / (data.spacing[0] * 1000) - 1) > SAME_RESOLUTION:
        mpp = data.spacing[0] * 1000
        yield f"features are of tiles at {facts.mpp:g} microns a pixel, the job's have {mpp:g} (data.spacing)"


def require_origin(slides: Sequence[Case], encoder: EncoderSpec, data: DataSpec) -> None:
    """Refuse features that are not the job's.

    Raises:
        DataError: some are not; it says how many, what differs and what to do.
    """
    faults = Counter(fault for facts in facts_of(slides) for fault in feature_faults(facts, encoder, data))
    if faults:
        listed = "; ".join(f"{counted(number, 'slide')}: {fault}" for fault, number in faults.most_common())
        raise DataError(f"{listed}. Change the job, or register features, or slides, that fit it")


def origin_digest(slides: Sequence[Case], own: str | None) -> str | None:
    """Return the digest of the weights that made a site's features.

    Args:
        slides: of the site.
        own: digest of the weights at the site; None where no slide needs them.

    Returns:
        None where a slide does not say it: what one says is not known of the others.

    Raises:
        DataError: they are of several.
    """
    said = [facts.digest for facts in facts_of(slides)]
    stated = Counter(digest for digest in said if digest)
    if own:
        stated[own] += sum(slide.features is None for slide in slides)
    if len(stated) > 1:
        listed = ", ".join(f"{counted(number, 'slide')} {digest[:_SHOWN]}…" for digest, number in stated.most_common())
        raise DataError(
            f"the slides' features are of different weights of the encoder: {listed}. Expected one: extract all with "
            "the same file of weights"
        )
    return None if None in said else next(iter(stated), None)


def facts_of(slides: Sequence[Case]) -> list[FeatureFacts]:
    """Return the facts of features that slides bring."""
    return [slide.entry.features for slide in slides if slide.entry and slide.entry.features]
