"""``exposure.html``: what attacks on a job gave away."""

from __future__ import annotations

from pathlib import Path

from oncofed.exposure.results import Exposure
from oncofed.report.pages import render


def write_exposure_page(found: Exposure, path: Path) -> Path:
    """Write the page and return it.

    Args:
        found: what the attacks found.
        path: of the page.
    """
    path.write_text(render("exposure.html", found=found), encoding="utf-8")
    return path
