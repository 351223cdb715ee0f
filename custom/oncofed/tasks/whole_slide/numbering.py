"""Single objects of a whole slide, joined across the blocks that they are found in.

Objects are told apart block by block, with some context around each. A block decides about the objects that reach into
it; what they cover beyond it is claimed. An object that a later block finds there again is the same one, and gets its
number. Objects of which no block saw the end may be parts of one: a later block that finds them to be one unites them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from oncofed.data.slides.canvas import SlideCanvas
from oncofed.tasks.slide_strips import SlideObjectMap, Strip, pack, strip_rows, unpack
from oncofed.tasks.whole_slide.gathering import Heats
from oncofed.tasks.whole_slide.labelling import Wanted, as_arrays, from_arrays
from oncofed.tasks.whole_slide.stitching import Block, Maps, Stitching
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, Arrays, StripStore

Numbers = NDArray[np.int32]
# From where objects are, (row, column) bool, and the depth inside them, float32, to a number for each.
Separate = Callable[[NDArray[np.bool_], Maps], Numbers]

# Columns of a block, and working pixels of context on each side of it.
BLOCK, CONTEXT = 1024, 64
# Probability from which a pixel is an object's.
_LIKELY = 0.5
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
        votes = [rows for rows in self.votes if len(rows)]
        if not votes:
            return np.zeros(1, np.uint8)
        rows = np.concatenate(votes)
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
    places = list(strip_rows(canvas.size))
    carried = np.zeros((0, width), np.int32)
    left = places
    for strip, below in store.kept(places, lambda arrays, rows: _kept(arrays, rows, canvas.size)):
        yield strip
        carried = below.carried
        count.last = below.last
        count.votes.append(below.votes)
        count.cut |= set(below.cut.tolist())
        count.same += [(one, other) for one, other in below.same.tolist()]
        left = left[1:]
    if not left:
        return
    top = max(0, left[0][0] - CONTEXT)
    capacity = max(end - first for first, end in left) + 2 * CONTEXT + stitching.side
    maps, heats = _HeldMaps(width, top, capacity), Heats(left, canvas.size)
    blocks = stitching.blocks(network, canvas, device, top, wanted, store.advance)
    for first, end in left:
        high = min(height, end + CONTEXT)
        while maps.end < high:
            _take(next(blocks), canvas, maps, heats)
        votes, same = len(count.votes), len(count.same)
        goes_on = (maps.top > 0, high < height)
        numbers = _joined(separate, maps, high, carried, first - maps.top, end - maps.top, count, goes_on)
        count.cut &= set(np.unique(numbers[end - first :]).tolist())
        carried = numbers[end - first :]
        maps.top = max(0, end - CONTEXT)
        strip = Strip.of(first, numbers[: end - first], heats.take(first, end))
        below = _Below(
            carried,
            count.last,
            np.concatenate(count.votes[votes:] or [np.zeros((0, 0))]),
            np.array(sorted(count.cut), np.int64),
            np.array(count.same[same:], np.int64).reshape(-1, 2),
        )
        store.save(first, {**as_arrays(strip), **below.arrays()})
        yield strip


class _Below(NamedTuple):
    """What the strips below one go on from.

    Attributes:
        carried: numbers that it claimed below its last row, (row, column) int32.
        last: number given last.
        votes: how likely its objects are of each class; see ``_Count``.
        cut: numbers of objects that were cut, (object,) int64.
        same: pairs of numbers of one object that it found, (pair, 2) int64.
    """

    carried: Numbers
    last: int
    votes: NDArray[np.float64]
    cut: NDArray[np.int64]
    same: NDArray[np.int64]

    def arrays(self) -> Arrays:
        """Return them as arrays to keep."""
        packed = np.frombuffer(pack(self.carried), np.uint8)
        return {**self._asdict(), "carried": packed, "last": np.array(self.last)}


def _kept(arrays: Arrays, rows: tuple[int, int], size: tuple[int, int]) -> tuple[Strip, _Below]:
    """Return a kept strip, and what those below go on from; errors as ``from_arrays``."""
    strip = from_arrays(arrays, rows, size)
    carried = unpack(arrays["carried"].tobytes(), "<i4", (-1, size[0]))
    below = _Below(carried, int(arrays["last"]), arrays["votes"], arrays["cut"], arrays["same"])
    if (below.votes.ndim, below.cut.ndim, below.same.ndim) != (2, 1, 2):
        raise ValueError("what is kept with a strip has other axes than expected")
    return strip, below


def _take(block: Block, canvas: SlideCanvas, maps: _HeldMaps, heats: Heats) -> None:
    """Hold a block of the map where there is tissue."""
    if block.values is not None:
        values: Maps = block.values * canvas.tissue_at(block.x, block.y, block.width, block.height)
        heats.add(block, values[1:-1].sum(axis=0))
        block = block._replace(values=values)
    maps.add(block)


class _HeldMaps:
    """Rows of the map that strips still need, in half precision.

    They are in one array, of which each row is written over and over: see ``stitching``.

    Args:
        width: of the slide.
        top: first row that is held.
        capacity: rows that are held at once, at most.

    Attributes:
        width: of the slide.
        top: first row that is held.
        end: first row that is not whole yet.
    """

    def __init__(self, width: int, top: int, capacity: int) -> None:
        self.width, self.top, self.end = width, top, top
        self._capacity = capacity
        self._values: NDArray[np.float16] | None = None

    def add(self, block: Block) -> None:
        """Hold a block; blocks come row by row."""
        if self._values is None and block.values is not None:
            self._values = np.zeros((len(block.values), self._capacity, self.width), np.float16)
        if self._values is not None:
            rows = np.arange(block.y, block.y + block.height) % self._capacity
            columns = slice(block.x, block.x + block.width)
            self._values[:, rows, columns] = 0 if block.values is None else block.values
        if block.x + block.width == self.width:
            self.end = block.y + block.height

    def window(self, low: int, high: int, end: int) -> Maps | None:
        """Return the maps of some columns, from the top to a row, (value, row, column); None where nobody looked."""
        if self._values is None:
            return None
        return self._values[:, np.arange(self.top, end) % self._capacity, low:high].astype(np.float32)


def _joined(
    separate: Separate,
    maps: _HeldMaps,
    reached: int,
    carried: Numbers,
    first: int,
    end: int,
    count: _Count,
    ends: tuple[bool, bool] = (True, True),
) -> Numbers:
    """Return the objects' numbers from a strip's first row on, with those below it that are claimed.

    Args:
        separate: tells objects apart.
        maps: of the strip with its context.
        reached: first row below the context.
        carried: numbers claimed by the strip above, from the strip's first row on.
        first: of the strip, within the maps.
        end: of it.
        count: gives numbers.
        ends: whether the slide goes on above the maps, and below.
    """
    width = maps.width
    numbers = np.zeros((reached - maps.top - first, width), np.int32)
    numbers[: len(carried)] = carried[: len(numbers)]
    for left in range(0, width, BLOCK):
        right = min(left + BLOCK, width)
        low, high = max(0, left - CONTEXT), min(width, right + CONTEXT)
        parts = maps.window(low, high, reached)
        if parts is None:
            continue
        inside = parts[1:-1].sum(axis=0) > _LIKELY
        if not inside.any():
            continue
        found = separate(inside, parts[-1])
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
        for_votes = [np.bincount(own.ravel(), part.ravel(), len(given)) for part in parts[1:-1]]
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
