"""The stain of a case, and its image normalised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oncofed.data.case import Case
from oncofed.data.manifest import Entry
from oncofed.data.slides.levels import Pixels
from oncofed.data.stain.columns import LAB, MACENKO, VAHADANE, Estimated, StainColumn, Template
from oncofed.data.stain.estimate import Numbers, lab_moments, macenko, vahadane
from oncofed.data.stain.normalise import by_moments, by_vectors
from oncofed.data.stain.sketch import SLIDE_COLOURS, colours, sketch
from oncofed.data.stain.spec import StainSpec
from oncofed.errors import DataError

_ESTIMATES: Mapping[Estimated, Callable[[NDArray[np.uint8]], Numbers | None]] = {
    "macenko": macenko,
    "vahadane": vahadane,
    "reinhard": lab_moments,
}
_COLUMNS: Mapping[Estimated, Sequence[StainColumn]] = {"macenko": MACENKO, "vahadane": VAHADANE, "reinhard": LAB}
# A column of a table that says of which slide an image is; without it, a patient's images are of one.
_SLIDE = "slide"


def with_slides_colours(cases: Sequence[Case]) -> list[Case]:
    """Return cases that know the colours of their whole slide.

    Images cut from one slide share its stain, and each alone may show too little of it.
    """
    slides: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        if case.entry and case.entry.colours:
            slides[_slide_of(case, case.entry)].append(case.entry.colours)
    return [
        replace(case, slide_colours=tuple(slides[_slide_of(case, case.entry)]))
        if case.entry and case.entry.colours
        else case
        for case in cases
    ]


def stain_row(case: Case, columns: Sequence[StainColumn]) -> dict[str, float]:
    """Return the numbers of a case's stain.

    Args:
        case: as registered; of one that nobody registered nothing is told.
        columns: which numbers.

    Returns:
        Column -> number; without those that cannot be told.
    """
    found: dict[str, float] = {}
    for method, every in _COLUMNS.items():
        wanted = [column.name for column in columns if column.method == method]
        numbers = _estimated(sketches_of(case), method) if wanted else None
        if numbers is not None:
            known = {column.name: _inside(value, column) for column, value in zip(every, numbers, strict=True)}
            found |= {name: known[name] for name in wanted}
    return found


class Normaliser:
    """Makes a case's images look like a template.

    Args:
        spec: of the job.
        template: that the sites agreed on; None: the published one.
    """

    def __init__(self, spec: StainSpec, template: Template | None) -> None:
        self._method = spec.normalise
        self._columns = spec.source_columns
        self._target = (template or Template.of(spec.columns, {})).means(self._columns)

    def __call__(self, rgb: Tensor, case: Case) -> Tensor:
        """Return a case's images or tiles with the template's stain.

        Those of a slide whose stain cannot be told, for want of tissue, stay as they are.

        Args:
            rgb: (batch, 3, ...) uint8, on any device.
            case: whose they are.

        Returns:
            The same shape, uint8.
        """
        return rgb if self._method == "none" else self._changed(rgb, sketches_of(case) or _of_image(rgb))

    def window(self, pixels: Pixels, sketches: tuple[str, ...]) -> Pixels:
        """Return a part of a slide (y, x, 3) uint8 with the template's stain.

        Args:
            pixels: of the part.
            sketches: of the whole slide.
        """
        rgb = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        return np.ascontiguousarray(self._changed(rgb, sketches)[0].numpy().transpose(1, 2, 0))

    def _changed(self, rgb: Tensor, sketches: tuple[str, ...]) -> Tensor:
        assert self._method != "none"
        numbers = _estimated(sketches, self._method)
        if numbers is None:
            return rgb
        change = by_moments if self._method == "reinhard" else by_vectors
        source = torch.from_numpy(numbers).float().to(rgb.device)
        return change(rgb.float(), source, self._target.to(rgb.device)).round().to(torch.uint8)

    def tiles(self, tiles: Sequence[Pixels], case: Case, device: torch.device) -> list[Pixels]:
        """Return a slide's tiles (size, size, 3) uint8 with the template's stain."""
        if self._method == "none":
            return list(tiles)
        batch = torch.from_numpy(np.stack(tiles)).to(device).permute(0, 3, 1, 2)
        return list(self(batch, case).permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def image(self, values: NDArray[np.generic], case: Case) -> NDArray[np.generic]:
        """Return an image (x, y, 3) with the template's stain.

        Raises:
            DataError: it has no colours of 8 bits.
        """
        if values.dtype != np.uint8 or values.shape[-1] != 3:
            raise DataError(
                f"has {values.shape[-1]} channels of {values.dtype}, expected red, green and blue of 8 bits: the job "
                "normalises stains (data.stain)"
            )
        rgb = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))[None]
        return np.moveaxis(self(rgb, case)[0].numpy(), 0, -1)


def _slide_of(case: Case, entry: Entry) -> tuple[str, str]:
    if entry.tiles:
        return case.name, "itself"
    named = next((text for name, text in entry.tags.items() if name.casefold() == _SLIDE and text.strip()), "")
    return case.patient, named


def sketches_of(case: Case) -> tuple[str, ...]:
    """Return sketches of the slide that a case is, or is cut from; none where nobody registered it."""
    own = (case.entry.colours,) if case.entry and case.entry.colours else ()
    return case.slide_colours or own


def _of_image(rgb: Tensor) -> tuple[str, ...]:
    """Return what an image that nobody registered shows of its slide."""
    return (sketch(rgb.movedim(1, -1).reshape(-1, 3).cpu().numpy(), most=SLIDE_COLOURS),)


@lru_cache(maxsize=4096)
def _estimated(sketches: tuple[str, ...], method: Estimated) -> Numbers | None:
    return _ESTIMATES[method](colours(sketches))


def _inside(value: float, column: StainColumn) -> float:
    assert column.range
    return float(min(max(value, column.range[0]), column.range[1]))
