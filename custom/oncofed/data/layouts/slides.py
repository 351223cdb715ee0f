"""Whole slides, with regions by name.

``A.geojson`` or ``labels/A.geojson`` of ``A.svs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from oncofed.data.grouping import named
from oncofed.data.layouts import kinds
from oncofed.data.layouts.base import NO_IMAGE, FolderLayout, Item, name_of, patient_of, unique
from oncofed.data.layouts.names import Named, Words, words
from oncofed.data.layouts.pairing import Candidate, pair
from oncofed.data.manifest import Quarantined
from oncofed.data.slides.regions import SUFFIXES

SLIDES_ALONE = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide")
SLIDES = (*SLIDES_ALONE, ".tif", ".tiff")

_HEAD = 1 << 14
_SAYS_REGIONS = (b'"Feature', b'"features"', b'"geometry"', b'"coordinates"')
_OF_NO_SLIDE = (
    "regions of no slide: name the file as its slide (SLIDE.geojson beside SLIDE.svs), or list both in a table "
    "(image, label)"
)
_OF_SEVERAL = "regions that may be of several slides: list both in a table (image, label)"
_OTHERS = "regions of a slide that has others, whose name is more like its own: to use them, name them in a table"
_UNREAD = "regions on a slide: to read them, register with --task slides, or list both in a table (image, label)"


class _Bare(Named):
    """A slide's or regions' path, without any suffix.

    A.ome.tif and A.geojson are A.
    """

    @cached_property
    def bare(self) -> Words:
        """Words of the file's name."""
        return words(_bare(self.path))


def slides(root: Path, files: Sequence[str]) -> FolderLayout:
    """Return a folder's slides, with regions by name."""
    layout = FolderLayout(kinds.SLIDES, task="slides")
    cases = [Candidate([_Bare(path)]) for path in files if path.lower().endswith(SLIDES)]
    lost = pair(cases, [_Bare(path) for path in files if _holds_regions(root, path)], _is_called_as)
    layout.left_out = {drawn.path: _OF_NO_SLIDE if reason == NO_IMAGE else _OF_SEVERAL for drawn, reason in lost}
    for case in cases:
        path = case.first.path
        # A name with a number beyond the slide's name belongs to another slide.
        fitting = case.masks or [found for found in case.loose if not _is_number(found[1])]
        others = [drawn.path for drawn, _ in (*case.masks, *case.loose) if (drawn, _) not in fitting]
        layout.left_out |= dict.fromkeys(others, _OTHERS if fitting else _OF_NO_SLIDE)
        drawn = [regions.path for regions, _ in fitting]
        if len(drawn) > 1:
            reason = f"has {len(drawn)} files of regions ({', '.join(drawn[:4])}), expected one"
            reason += ". Say which in a table (image, label)"
            layout.bad.append(Quarantined(name=name_of(path), reason=reason, source=path))
            layout.left_out |= dict.fromkeys(drawn, "regions of a slide that is set aside for them: see there")
            continue
        notes = (f"its regions are those of {drawn[0]}, by its name",) if drawn and not case.masks else ()
        label = drawn[0] if drawn else None
        layout.items.append(
            Item(name=name_of(path), patient=patient_of(path), images=(path,), label=label, modality="SM", notes=notes)
        )
    layout.remarks += _each_its_own([item for item in layout.items if item.label])
    layout.items = unique(layout.items)
    return layout


def _each_its_own(drawn: Sequence[Item]) -> list[str]:
    """Return a remark on slides with regions whose patient nothing names."""
    alone = [item.name for item in drawn if not item.patient]
    if len(alone) < 2:
        return []
    remark = (
        f"slides with regions whose patient nothing names, {len(alone):,} of {len(drawn):,}: {named(alone)}. Each "
        "counts as a patient of its own, so slides of one patient may lie in training and in test, and scores be too "
        "good. Name a table with the columns image, label and patient with --labels, and register again"
    )
    return [remark]


def unread_regions(layout: FolderLayout, files: Sequence[str]) -> dict[str, str]:
    """Return why unused files of regions are not read."""
    used = {mask for item in layout.items for mask in item.masks}
    reason = layout.kind.unread_regions or (_OF_NO_SLIDE if layout.task == "slides" else _UNREAD)
    return {
        path: reason
        for path in files
        if path.lower().endswith(SUFFIXES[0]) and path not in used and path not in layout.left_out
    }


def _holds_regions(root: Path, path: str) -> bool:
    """Return whether a file holds regions; JSON may be anything."""
    if not path.lower().endswith(SUFFIXES):
        return False
    if path.lower().endswith(SUFFIXES[0]):
        return True
    try:
        with (root / path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return any(mark in head for mark in _SAYS_REGIONS)


def _is_called_as(case: Candidate, regions: Named) -> bool:
    """Return whether regions are named as a slide.

    With its suffix, or without the last one.
    """
    slide = Path(case.first.path)
    return Path(regions.path).stem.casefold() in {slide.name.casefold(), slide.stem.casefold()}


def _is_number(extra: Words) -> bool:
    return bool(extra) and all(word.isdigit() for word in extra)


def _bare(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    while name.lower().endswith((*SUFFIXES, *SLIDES, ".ome")) and Path(name).stem != name:
        name = Path(name).stem
    return name
