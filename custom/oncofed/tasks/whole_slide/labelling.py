"""Labels of a whole slide, strip by strip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed.data.slides.canvas import SlideCanvas
from oncofed.tasks.slide_strips import SlideRegions, Strip, shrink_of, strip_rows
from oncofed.tasks.whole_slide.gathering import Heats, Places, parts_of
from oncofed.tasks.whole_slide.stitching import Block, Stitching
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
    places = list(strip_rows(canvas.size))
    left = places
    for strip in store.kept(places, lambda arrays, rows: from_arrays(arrays, rows, canvas.size)):
        yield strip
        left = left[1:]
    if not left:
        return
    blocks = stitching.blocks(network, canvas, device, left[0][0], wanted, store.advance)
    for strip in _gathered(blocks, left, canvas):
        store.save(strip.first, as_arrays(strip))
        yield strip


def _gathered(blocks: Iterator[Block], places: Places, canvas: SlideCanvas) -> Iterator[Strip]:
    """Yield strips, of the map's finished blocks."""
    width = canvas.size[0]
    heats, labels, waiting = Heats(places, canvas.size), dict[int, NDArray[np.uint8]](), deque(places)
    for block in blocks:
        found = _decided(block, canvas)
        for first, end, rows in parts_of(block, places):
            if first not in labels:
                labels[first] = np.zeros((end - first, width), np.uint8)
            if found is not None:
                top = block.y + rows.start - first
                part = found[0][rows]
                labels[first][top : top + len(part), block.x : block.x + block.width] = part
        if found is not None:
            heats.add(block, found[1])
        while block.x + block.width == width and waiting and waiting[0][1] <= block.y + block.height:
            first, end = waiting.popleft()
            yield Strip.of(first, labels.pop(first), heats.take(first, end))


def _decided(block: Block, canvas: SlideCanvas) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
    """Return the likeliest class of each pixel with tissue, and how likely it is of one; None where nobody looked."""
    if block.values is None:
        return None
    tissue = canvas.tissue_at(block.x, block.y, block.width, block.height)
    labels, likely = np.zeros(tissue.shape, np.uint8), np.zeros(tissue.shape, np.float32)
    seen = tissue & (block.values.sum(axis=0) > 0)
    np.copyto(labels, block.values.argmax(axis=0), where=seen, casting="unsafe")
    np.copyto(likely, block.values[1:].max(axis=0), where=seen)
    return labels, likely


def as_arrays(strip: Strip) -> Arrays:
    """Return a strip as arrays to keep."""
    return {"packed": np.frombuffer(strip.packed, np.uint8), "kind": np.array(strip.kind), "heat": strip.heat}


def from_arrays(arrays: Arrays, rows: tuple[int, int], size: tuple[int, int]) -> Strip:
    """Return a kept strip.

    Args:
        arrays: of ``as_arrays``.
        rows: the first, and that after the last.
        size: of the slide, working pixels across and down.

    Raises:
        ValueError: they are of a strip of another shape.
        KeyError: one is missing.
    """
    shape, shrink = (rows[1] - rows[0], size[0]), shrink_of(size)
    strip = Strip(rows[0], shape, str(arrays["kind"]), arrays["packed"].tobytes(), arrays["heat"])
    shrunk = tuple(-(-length // shrink) for length in shape)
    if strip.values.shape != shape or strip.heat.shape != shrunk:
        raise ValueError(f"a kept strip has the shape {strip.heat.shape} shrunk, expected {shrunk}")
    return strip
