"""Single objects of a whole slide, joined across the blocks that they are found in.

Objects are told apart block by block, with some context around each. A block decides about the objects that reach into
it; what they cover beyond it is claimed. An object that a later block finds there again is the same one, and gets its
number. Objects of which no block saw the end may be parts of one: a later block that finds them to be one unites them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from oncofed.data.slides.canvas import SlideCanvas
from oncofed.tasks.slide_strips import SlideObjectMap, Strip, pack, shrink_of, shrunk_heat, strip_rows, unpack
from oncofed.tasks.whole_slide.labelling import Wanted, as_arrays, from_arrays
from oncofed.tasks.whole_slide.stitching import Maps, Stitching
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, Arrays, StripStore

Numbers = NDArray[np.int32]
# From where objects are, (row, column) bool, and the depth inside them, float32, to a number for each.
Separate = Callable[[NDArray[np.bool_], Maps], Numbers]

# Columns of a block, and working pixels of context on each side of it.
BLOCK, CONTEXT = 1024, 64
# Share of the smaller of two objects, from which they are the same.
_SAME = 0.5


def numbered(
    stitching: Stitching,
    separate: Separate,
    network: nn.Module,
    canvas: SlideCanvas,
    device: torch.device,
    store: StripStore = NOTHING_KEPT,
    wanted: Wanted | None = None,
) -> SlideObjectMap:
    """Return the single objects of a slide.

    Args:
        stitching: gives the probability of each class, background first, and the depth inside objects.
        separate: tells the objects of a block apart.
        network: on ``device``, in evaluation mode.
        canvas: the slide.
        device: where the network is.
        store: of strips that are finished, in which this call goes on.
        wanted: which boxes are looked at; None: those with tissue.
    """
    count = _Count()
    strips = list(_strips(stitching, separate, network, canvas, device, store, wanted, count))
    if count.same:
        final = count.final()
        strips = [Strip.of(strip.first, final[strip.values], strip.heat) for strip in strips]
    return SlideObjectMap(
        tuple(strips),
        canvas.size,
        canvas.pixel,
        canvas.finest,
        canvas.pixel_mm2,
        canvas.tissue_mm2,
        classes=count.classes(),
    )


@dataclass
class _Count:
    """How likely each object is of each class, and which numbers are of one.

    Attributes:
        votes: sums of probabilities, a row (number, class, …) each.
        last: number given last.
        cut: numbers of objects that a block with its context cut.
        same: pairs of numbers of one object.
    """

    votes: list[NDArray[np.float64]] = field(default_factory=list)
    last: int = 0
    cut: set[int] = field(default_factory=set)
    same: list[tuple[int, int]] = field(default_factory=list)

    def final(self) -> Numbers:
        """Return the number that each becomes, (number + 1,), without gaps."""
        pairs = np.array(self.same, np.int64).reshape(-1, 2)
        size = self.last + 1
        links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
        _, first, of = np.unique(connected_components(links, False)[1], return_index=True, return_inverse=True)
        found: Numbers = np.argsort(np.argsort(first)).astype(np.int32)[of]
        return found

    def classes(self) -> NDArray[np.uint8]:
        """Return the likeliest class of each object, (object + 1,)."""
        if not self.votes:
            return np.zeros(1, np.uint8)
        rows = np.concatenate(self.votes)
        final = self.final()
        total = np.zeros((final.max() + 1, rows.shape[1] - 1))
        np.add.at(total, final[rows[:, 0].astype(np.int64)], rows[:, 1:])
        found: NDArray[np.uint8] = (total.argmax(axis=1) + 1).astype(np.uint8)
        found[0] = 0
        return found


def _strips(
    stitching: Stitching,
    separate: Separate,
    network: nn.Module,
    canvas: SlideCanvas,
    device: torch.device,
    store: StripStore,
    wanted: Wanted | None,
    count: _Count,
) -> Iterator[Strip]:
    width, height = canvas.size
    places = list(strip_rows(height))
    carried = np.zeros((0, width), np.int32)
    left = places
    for rows, known in store.kept(places):
        yield from_arrays(known, rows, width)
        carried = _carried(known, width)
        count.last = int(known["last"])
        count.votes.append(known["votes"])
        count.cut |= set(known["cut"].tolist())
        count.same += [(one, other) for one, other in known["same"].tolist()]
        left = left[1:]
    if not left:
        return
    maps = stitching.rows(network, canvas, device, max(0, left[0][0] - CONTEXT), wanted, store.advance)
    for (first, end), top, parts in _with_context(maps, left, height):
        tissue = canvas.tissue_at(0, top, width, parts.shape[1])
        parts[:, ~tissue] = 0
        likely = parts[1:-1].sum(axis=0)
        votes, same = len(count.votes), len(count.same)
        ends = (top > 0, top + parts.shape[1] < height)
        numbers = _joined(separate, parts, likely, carried, first - top, end - top, count, ends)
        count.cut &= set(np.unique(numbers[end - first :]).tolist())
        carried = numbers[end - first :]
        heat = shrunk_heat(likely[first - top : end - top], shrink_of(canvas.size))
        strip = Strip.of(first, numbers[: end - first], heat)
        new = np.concatenate(count.votes[votes:] or [np.zeros((0, len(parts) - 1))])
        below = {
            "carried": np.frombuffer(pack(carried), np.uint8),
            "last": np.array(count.last),
            "votes": new,
            "cut": np.array(sorted(count.cut), np.int64),
            "same": np.array(count.same[same:], np.int64).reshape(-1, 2),
        }
        store.save(first, {**as_arrays(strip), **below})
        yield strip


def _carried(arrays: Arrays, width: int) -> Numbers:
    packed = arrays["carried"].tobytes()
    flat: Numbers = unpack(packed, "<i4", (-1, width)) if width else np.zeros((0, 0), np.int32)
    return flat


def _with_context(
    maps: Iterator[tuple[int, Maps]], places: list[tuple[int, int]], height: int
) -> Iterator[tuple[tuple[int, int], int, Maps]]:
    """Yield each strip's rows, the first row of its context, and the maps from there to its end."""
    top, held = next(maps)
    for first, end in places:
        low, high = max(0, first - CONTEXT), min(height, end + CONTEXT)
        parts = [held]
        reached = top + held.shape[1]
        while reached < high:
            _, more = next(maps)
            parts.append(more)
            reached += more.shape[1]
        held = np.concatenate(parts, axis=1)
        yield (first, end), low, held[:, low - top : high - top].copy()
        rest = max(0, end - CONTEXT) - top
        held, top = held[:, rest:].copy(), top + rest


def _joined(
    separate: Separate,
    parts: Maps,
    likely: Maps,
    carried: Numbers,
    first: int,
    end: int,
    count: _Count,
    ends: tuple[bool, bool] = (True, True),
) -> Numbers:
    """Return the objects' numbers from a strip's first row on, with those below it that are claimed.

    Args:
        separate: tells objects apart.
        parts: maps of the strip with its context, (value, row, column).
        likely: probability of any object, (row, column).
        carried: numbers claimed by the strip above, from the strip's first row on.
        first: of the strip, within the maps.
        end: of it.
        count: gives numbers.
        ends: whether the slide goes on above the maps, and below.
    """
    height, width = likely.shape
    numbers = np.zeros((height - first, width), np.int32)
    numbers[: len(carried)] = carried[: len(numbers)]
    for left in range(0, width, BLOCK):
        right = min(left + BLOCK, width)
        low, high = max(0, left - CONTEXT), min(width, right + CONTEXT)
        inside = likely[:, low:high] > 0.5
        if not inside.any():
            continue
        found = separate(inside, parts[-1][:, low:high])
        core = np.zeros(found.max() + 1, bool)
        core[np.unique(found[first:end, left - low : right - low])] = True
        core[0] = False
        own = np.where(core[found], found, 0)
        # What lies above or to the left of the block was decided before.
        decided = numbers[:, left:high]
        given = _given(own[first:, left - low :], decided, count)
        edges = zip((own[0], own[-1], own[:, 0], own[:, -1]), (*ends, low > 0, high < width), strict=True)
        count.cut |= set(given[np.concatenate([[0], *(edge for edge, goes_on in edges if goes_on)])].tolist()) - {0}
        fresh = given[own[first:, left - low :]]
        decided[decided == 0] = fresh[decided == 0]
        for_votes = [np.bincount(own.ravel(), part.ravel(), len(given)) for part in parts[1:-1][:, :, low:high]]
        rows = np.stack([given.astype(np.float64), *for_votes], axis=1)
        count.votes.append(rows[given > 0])
    return numbers


def _given(own: Numbers, decided: Numbers, count: _Count) -> Numbers:
    """Return the number of each of a block's objects, 0 where it has none there.

    That of a claimed object that it shares most with, if that is half of the smaller of both; else a new one. Of others
    with which it shares as much, those that were cut are the same.
    """
    sizes = np.bincount(own.ravel())
    given = np.zeros(len(sizes), np.int32)
    both = (own > 0) & (decided > 0)
    pairs, shared = np.unique(np.stack([own[both], decided[both]]), axis=1, return_counts=True)
    claimed, claims = np.unique(decided[decided > 0], return_counts=True)
    smaller = np.minimum(sizes[pairs[0]], claims[np.searchsorted(claimed, pairs[1])])
    for number in np.argsort(shared, kind="stable").tolist():  # the largest share is the last word
        if shared[number] >= _SAME * smaller[number]:
            one, other = int(given[pairs[0][number]]), int(pairs[1][number])
            if one in count.cut and other in count.cut:
                count.same.append((one, other))
            given[pairs[0][number]] = other
    new = np.flatnonzero((sizes > 0) & (given == 0))
    new = new[new > 0]
    given[new] = count.last + 1 + np.arange(len(new))
    count.last += len(new)
    return given
