"""A page of suspicious cases, for the site itself.

It shows image, contour, directions and scale of each, and the reasons to look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from oncofed.atomic import write_whole
from oncofed.data.case import case_of
from oncofed.data.look import Look, Seen
from oncofed.data.manifest import Manifest
from oncofed.report.pages import render
from oncofed.report.planes import Drawing, Drawn, draw_all, legend

PAGE_FILE = "look.html"
_MOST_LISTED = 500
# Number of voxels of all pictures from which several processes draw.
_LARGE = 300_000_000

Progress = Callable[[str, int, int], None]


def write_look_page(
    look: Look, folder: Path, path: Path, workers: int | None = None, progress: Progress | None = None
) -> Path:
    """Write the page atomically, and return it.

    Args:
        look: cases to show.
        folder: of the dataset.
        path: of the page.
        workers: reader processes; None: one a core.
        progress: called with (activity, cases done, all cases).

    Raises:
        OSError: it cannot be written.
    """
    names = {int(float(value)): name for value, name in look.manifest.labels.items()}
    drawn = _draw(look, folder, workers, progress)
    html = render(
        "look.html",
        look=look,
        worst=look.worst,
        cases=[(seen, drawn[seen.name], _facts(seen, names), _legend(drawn[seen.name], names)) for seen in look.shown],
        unseen=[seen for seen in look.suspicious if seen not in look.shown][:_MOST_LISTED],
    )
    write_whole(path, html)
    return path


def _draw(look: Look, folder: Path, workers: int | None, progress: Progress | None) -> dict[str, Drawn]:
    drawings = [_drawing(seen, folder, look.manifest) for seen in look.shown]
    voxels = sum(
        math.prod(seen.entry.shape or [1]) for seen in look.shown if not (seen.entry.tiles or seen.entry.features)
    )
    fewest = 2 if voxels > _LARGE else len(drawings) + 1
    return draw_all(drawings, workers, fewest, progress)


def _drawing(seen: Seen, folder: Path, manifest: Manifest) -> Drawing:
    is_ct = (seen.entry.modality or "").upper() == "CT" or set(manifest.modality.values()) == {"CT"}
    return Drawing(case_of(folder, manifest, seen.entry), is_ct)


def _facts(seen: Seen, names: dict[int, str]) -> str:
    """Return the facts of a case in one line."""
    entry = seen.entry
    parts = [seen.split if entry.split else "list dealt by the job", entry.modality or ""]
    if entry.features:
        parts.append(f"{entry.features.tiles:,} × {entry.features.size} features of {entry.features.encoder}")
    if entry.shape:
        parts.append(" × ".join(map(str, entry.shape)) + (" voxels" if len(entry.shape) == 3 else " pixels"))
    if entry.spacing:
        small = max(entry.spacing) < 0.01
        sides = (f"{side * 1000 if small else side:.3g}" for side in entry.spacing)
        parts.append(" × ".join(sides) + (" µm" if small else " mm"))
    else:
        parts.append("pixel size not said")
    parts.append(entry.orientation or "")
    if isinstance(entry.label, int):
        parts.append(f"class {names.get(entry.label, entry.label)}")
    elif entry.label is None:
        parts.append("no label")
    return ", ".join(part for part in parts if part)


def _legend(drawn: Drawn, names: dict[int, str]) -> list[tuple[str, str, str]]:
    """Return (colour, dashes, name) of the visible labels."""
    named = {value: name if name.strip() != str(value) else f"label {value}" for value, name in names.items()}
    return legend(drawn.values, named)
