"""Labels of a whole slide, strip by strip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed.data.slides.canvas import SlideCanvas
from oncofed.tasks.slide_strips import SlideRegions, Strip, shrink_of, shrunk_heat, strip_rows
from oncofed.tasks.whole_slide.stitching import Maps, Stitching
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, Arrays, StripStore

Wanted = Callable[[int, int, int, int], bool]


def labelled(
    stitching: Stitching,
    network: nn.Module,
    canvas: SlideCanvas,
    device: torch.device,
    store: StripStore = NOTHING_KEPT,
    wanted: Wanted | None = None,
) -> SlideRegions:
    """Return the likeliest class of each working pixel with tissue.

    Args:
        stitching: gives the probability of each class, background first.
        network: on ``device``, in evaluation mode.
        canvas: the slide.
        device: where the network is.
        store: of strips that are finished, in which this call goes on.
        wanted: which boxes are looked at; None: those with tissue.
    """
    strips = list(_strips(stitching, network, canvas, device, store, wanted))
    return SlideRegions(tuple(strips), canvas.size, canvas.pixel, canvas.finest, canvas.pixel_mm2, canvas.tissue_mm2)


def _strips(
    stitching: Stitching,
    network: nn.Module,
    canvas: SlideCanvas,
    device: torch.device,
    store: StripStore,
    wanted: Wanted | None,
) -> Iterator[Strip]:
    width, height = canvas.size
    places = list(strip_rows(height))
    left = places
    for rows, known in store.kept(places):
        yield from_arrays(known, rows, width)
        left = left[1:]
    if not left:
        return
    maps = stitching.rows(network, canvas, device, left[0][0], wanted, store.advance)
    for (first, _), parts in _gathered(_decided(maps, canvas), left):
        strip = Strip.of(first, parts[0].astype(np.uint8), shrunk_heat(parts[1], shrink_of(canvas.size)))
        store.save(first, as_arrays(strip))
        yield strip


def _decided(maps: Iterator[tuple[int, Maps]], canvas: SlideCanvas) -> Iterator[tuple[int, Maps]]:
    """Yield the likeliest class of each pixel with tissue, and how likely it is of one, (2, row, column), of the maps.

    At once: a wide slide's rows that wait for their strip would hold a number for each class.
    """
    for first, parts in maps:
        tissue = canvas.tissue_at(0, first, parts.shape[2], parts.shape[1])
        seen = tissue & (parts.sum(axis=0) > 0)
        decided = np.zeros((2, *seen.shape), np.float32)
        np.copyto(decided[0], parts.argmax(axis=0), where=seen, casting="unsafe")
        np.copyto(decided[1], parts[1:].max(axis=0), where=seen)
        yield first, decided


def as_arrays(strip: Strip) -> Arrays:
    """Return a strip as arrays to keep."""
    return {"packed": np.frombuffer(strip.packed, np.uint8), "kind": np.array(strip.kind), "heat": strip.heat}


def from_arrays(arrays: Arrays, rows: tuple[int, int], width: int) -> Strip:
    """Return a kept strip."""
    shape = (rows[1] - rows[0], width)
    return Strip(rows[0], shape, str(arrays["kind"]), arrays["packed"].tobytes(), arrays["heat"])


def _gathered(
    maps: Iterator[tuple[int, Maps]], places: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Maps]]:
    """Yield each strip's rows, of the maps' finished ones."""
    waiting: list[NDArray[Any]] = []
    coming = iter(places)
    first, end = next(coming)
    for _, part in maps:
        rest = part
        while rest.shape[1]:
            missing = end - first - sum(one.shape[1] for one in waiting)
            waiting.append(rest[:, :missing])
            rest = rest[:, missing:]
            if sum(one.shape[1] for one in waiting) == end - first:
                yield (first, end), np.concatenate(waiting, axis=1)
                waiting = []
                first, end = next(coming, (end, end))
                if first == end:
                    return
