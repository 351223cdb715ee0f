"""Expressions of a bundle's configuration.

All are written here: no text of a job becomes one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from oncofed.models.foreign import EXPRESSIONS

Config = dict[str, Any]

_RELATIVE = re.compile(r"[@%]#")
# An expression cannot raise by itself.
REFUSE = "$lambda why: (_ for _ in ()).throw(ValueError(why))"


def plain(text: str) -> str:
    """Escape a job author's text for MONAI's parser.

    A string that begins with one of ``$@%`` would be evaluated or replaced, as ``@#`` and ``%#`` would within one.
    """
    escaped = _RELATIVE.sub(lambda found: f"{found[0][0]} #", text)
    return f" {escaped}" if escaped[:1] in EXPRESSIONS else escaped


def literal(value: object) -> str:
    """Return numbers as an expression.

    Raises:
        TypeError: it holds anything else.
    """
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, int | float) for part in parts):
        raise TypeError("only numbers become part of an expression")
    return json.dumps(value)


def of_image(function: str) -> Config:
    """Return a step that applies a configured function."""
    return {"_target_": "Lambdad", "keys": "image", "func": function}


def unless(conditions: list[str], why: str) -> str:
    """Return an expression that passes an image, or refuses it.

    Args:
        conditions: on ``image``, as expressions.
        why: message of the refusal, without quotes.
    """
    return f"$lambda image: image if {' and '.join(conditions)} else @refuse('{why}')"
