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
_TO_SAY = (
    "Whose features say no weights may be of others. Say which made them (oncofed data register --features with "
    "--encoder-weights or --encoder-digest), or let such sites take part: task.encoder.unknown: allow"
)


def common_encoder(cases: Mapping[str, Mapping[str, Any]], unknown_allowed: bool) -> str | None:
    """Return the digest of the weights behind all sites' features.

    Args:
        cases: by site, what it told of its data.
        unknown_allowed: sites that do not know their weights may train with sites that do.

    Returns:
        None where no site knows it, or the job has no encoder with weights.

    Raises:
        EncodersDifferError: sites have different ones, or only some know theirs; the message names each.
    """
    told = {site: facts[ENCODER] for site, facts in sorted(cases.items()) if ENCODER in facts}
    stated = {digest for digest in told.values() if digest}
    listed = ", ".join(f"{site} {_shown(digest)}" for site, digest in told.items())
    if len(stated) > 1:
        raise EncodersDifferError(f"the sites' features are of different weights of the encoder: {listed}. {_TO_DO}")
    if stated and None in told.values() and not unknown_allowed:
        raise EncodersDifferError(f"some sites do not know which weights made their features: {listed}. {_TO_SAY}")
    return next(iter(stated), None)


def difference(facts: Mapping[str, Any], common: str | None, unknown_allowed: bool) -> str:
    """Return why a site that comes late cannot take part; empty where it can.

    Args:
        facts: what it told of its data.
        common: digest of the weights behind the others' features; None: unknown.
        unknown_allowed: see ``common_encoder``.
    """
    found = facts.get(ENCODER)
    if ENCODER not in facts or found == common or (unknown_allowed and not (found and common)):
        return ""
    if found and not common:
        return (
            f"its features are of weights {_shown(found)} of the encoder, and no other site knows which its own are of "
            f"(nothing is wrong here): the others say it, or the job lets them take part. {_TO_SAY}"
        )
    to_do = _TO_DO if found else _TO_SAY
    return f"its features are of weights {_shown(found)} of the encoder, the others' of {_shown(common)}. {to_do}"


def _shown(digest: str | None) -> str:
    return f"{digest[:_SHOWN]}…" if digest else "unknown"


def is_unknown(facts: Mapping[str, Any]) -> bool:
    """Return whether a site does not know which weights made each of its features."""
    return ENCODER in facts and facts[ENCODER] is None
