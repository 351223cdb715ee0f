"""The bundle of a model that MONAI alone cannot run: of code beyond MONAI's.

It holds weights and facts, and gives no answer.
"""

from __future__ import annotations

from oncofed.models.bundle.expressions import REFUSE, Config

# The digest alone comes from the job, 64 hexadecimal digits: no text of a job's author is part of this.
_OF_PACK = (
    "This model answers only with the code of the pack {}, which no bundle holds: "
    "predict with oncofed, from the folder of the run, where the pack is."
)
_OF_OURS = (
    "This model answers only with the code of oncofed, which no bundle holds: {}. Predict from the folder of the run."
)


def reason(pack: str, lacks: str) -> str:
    """Return why such a bundle does not answer.

    Args:
        pack: digest, 64 hexadecimal digits; empty: the code is oncofed's own.
        lacks: what of it MONAI has not.
    """
    return _OF_PACK.format(pack) if pack else _OF_OURS.format(lacks)


def refusing_inference(why: str) -> Config:
    """Return an ``inference.json`` that only reports why."""
    # An exception would end in a traceback of MONAI's parser.
    refused = ["$sys.exit(@why)"]
    return {"imports": ["$import sys"], "bundle_root": ".", "why": why, "initialize": refused, "run": refused}


def refusing_definition(why: str) -> Config:
    """Return a ``train.json`` whose network raises ``ValueError``.

    ``monai.bundle.load`` builds it.
    """
    return {"why": why, "refuse": REFUSE, "network_def": "$@refuse(@why)"}


def refusing_readme(title: str, why: str) -> str:
    """Return the bundle's description for people."""
    return (
        f"# {title}\n\nTrained by oncofed in a federation of sites. Research only. Not a medical device.\n\n"
        f"{why}\n\nThe weights are in `models/model.pt`, the job in `oncofed.json`.\n"
    )
