"""Renders the package's HTML pages."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader


def render(template: str, **values: Any) -> str:
    """Return a page as HTML, with values escaped.

    Args:
        template: name of a file in ``templates``.
        values: variables of the template.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("oncofed.report"), autoescape=True, trim_blocks=True)
