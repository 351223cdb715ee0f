"""Whether the sites' features are of the same encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.errors import EncodersDifferError

# Key among a site's facts; see ``data.inputs.Preparation.origin``.
ENCODER = "encoder"
_SHOWN = 12  # characters of a digest that tell it from others
_TO_DO = (
    "A model learns from the features of one encoder alone. Give the sites the same file of weights (oncofed data "
    "encoders), extract again where features were brought, or pin the weights that count: task.encoder.digest"
)


def common_encoder(cases: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the digest of the weights behind all sites' features.

    Args:
        cases: by site, what it told of its data.

    Returns:
        None where no site knows it, or the job has no encoder with weights.

    Raises:
        EncodersDifferError: sites have different ones; the message names each.
    """
    stated = {site: str(facts[ENCODER]) for site, facts in sorted(cases.items()) if facts.get(ENCODER)}
    if len(set(stated.values())) > 1:
        listed = ", ".join(f"{site} {digest[:_SHOWN]}…" for site, digest in stated.items())
        raise EncodersDifferError(f"the sites' features are of different weights of the encoder: {listed}. {_TO_DO}")
    return next(iter(stated.values()), None)


def difference(facts: Mapping[str, Any], common: str | None) -> str:
    """Return why a site that comes late cannot take part; empty where it can.

    Args:
        facts: what it told of its data.
        common: digest of the weights behind the others' features; None: unknown.
    """
    found = facts.get(ENCODER)
    if not found or not common or found == common:
        return ""
    return f"its features are of weights {found[:_SHOWN]}… of the encoder, the others' of {common[:_SHOWN]}…. {_TO_DO}"


def is_unknown(facts: Mapping[str, Any]) -> bool:
    """Return whether a site does not know which weights made each of its features."""
    return ENCODER in facts and facts[ENCODER] is None
