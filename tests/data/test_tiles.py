"""Tiles of many slides as one ordered, bounded stream."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from dicoms import make_wsi
from oncofed.data import slides as slides_module
from oncofed.data import tiles as tiles_module
from oncofed.data.slides import DicomSlideFile, Level, Pixels, TileReader, TileSpec
from oncofed.data.tiles import SlideTiles, stream_tiles
from oncofed.errors import DataError

SPEC = TileSpec(16, 0.5)


class Simulated:
    """A slide of numbered tiles, with a hook on reading."""

    def __init__(self, when_read: Callable[[int], None]) -> None:
        self.levels = [Level(1_000_000, 16, 0.5)]
        self.vendor = None
        self.closed = 0
        self.reading = 0
        self.read_tiles: list[int] = []
        self._when_read = when_read
        self._lock = threading.Lock()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        assert not self.closed
        with self._lock:
            self.reading += 1
        try:
            self._when_read(x // 16)
        finally:
            with self._lock:
                self.reading -= 1
        self.read_tiles.append(x // 16)
        return np.full((height, width, 3), x // 16 % 256, np.uint8)

    def close(self) -> None:
        assert not self.reading
        self.closed += 1


Opened = Callable[..., list[Simulated]]


class AtOnce(ThreadPoolExecutor):
    """Runs tasks before it returns their future."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open simulated slides for paths, and return them."""

    def begin(when_read: Callable[[int], None] = lambda tile: None) -> list[Simulated]:
        made: list[Simulated] = []

        def open_slide(path: Path) -> Simulated:
            made.append(Simulated(when_read))
            return made[-1]

        monkeypatch.setattr(slides_module, "open_slide", open_slide)
        return made

    return begin


def _slides(*counts: int) -> list[SlideTiles]:
    return [
        SlideTiles(Path("slide"), SPEC, np.arange(count, dtype=np.int32) * 16, np.zeros(count, np.int32))
        for count in counts
    ]


def test_each_tile_comes_once_and_in_order_for_any_threads(opened: Opened) -> None:
    made = opened()
    for threads in (1, 3, 8):
        seen: list[list[int]] = [[] for _ in range(4)]
        for number, first, pixels in stream_tiles(_slides(70, 0, 33, 1), threads):
            seen[number] += [int(tile[0, 0, 0]) for tile in pixels]
            assert seen[number][first] == first % 256
        assert seen == [list(range(count)) for count in (70, 0, 33, 1)]
    assert len(made) == 9  # one without tiles is not opened
    assert all(slide.closed == 1 for slide in made)


def test_all_threads_decode_one_slide_at_once(opened: Opened) -> None:
    everybody = threading.Barrier(4, timeout=20)

    def meet(tile: int) -> None:
        if tile % 32 == 0:  # the first of each run
            everybody.wait()

    opened(meet)
    assert sum(len(pixels) for _, _, pixels in stream_tiles(_slides(128), threads=4)) == 128


@pytest.mark.parametrize(
    ("threads", "most", "expected"), [(2, 10**9, 16 * 32), (2, 200, 200), (64, 1000, 1000), (1, 0, 1)]
)
def test_reading_ahead_is_bounded_by_bytes_not_cores(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, threads: int, most: int, expected: int
) -> None:
    monkeypatch.setattr(tiles_module, "ThreadPoolExecutor", AtOnce)
    made = opened()
    stream = stream_tiles(_slides(5000), threads, most_bytes=most * SPEC.bytes)
    _, _, pixels = next(stream)
    run = len(pixels)
    assert expected - run < len(made[0].read_tiles) <= expected
    next(stream)
    assert len(made[0].read_tiles) <= expected + run
    stream.close()
    # Every thread has something to read.
    assert expected < threads or expected // run >= threads


def test_few_slides_are_open_at_a_time(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_module, "ThreadPoolExecutor", AtOnce)
    made = opened()
    most = 0
    for _ in stream_tiles(_slides(*[1] * 1000), threads=128):
        most = max(most, sum(not slide.closed for slide in made))
    assert most < 300
    assert all(slide.closed == 1 for slide in made)


def test_stopping_early_closes_all_slides(opened: Opened) -> None:
    made = opened()
    stream = stream_tiles(_slides(100, 100, 100), threads=2)
    next(stream)
    stream.close()
    assert made
    assert all(slide.closed == 1 for slide in made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize("error", [ValueError("corrupt JPEG data"), DataError("is cut off"), KeyboardInterrupt()])
def test_an_error_ends_the_stream_after_earlier_tiles(opened: Opened, error: BaseException) -> None:
    failed = threading.Event()

    def fail(tile: int) -> None:
        if tile == 40:
            failed.set()
            raise error
        if tile > 64:  # a failure does not wait for other tiles
            failed.wait(300)

    made = opened(fail)
    stream = stream_tiles(_slides(5000), threads=2)
    assert next(stream)[:2] == (0, 0)
    expected = type(error) if not isinstance(error, ValueError) else DataError
    with pytest.raises(expected) as raised:
        next(stream)
    if isinstance(error, ValueError):
        assert "its tiles cannot be read: the file is damaged" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert len(made[0].read_tiles) < 1000
    assert made[0].closed == 1


def test_slide_is_closed_after_its_last_reader(opened: Opened) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def linger(tile: int) -> None:
        begun.set()
        assert go_on.wait(300)

    made = opened(linger)
    reader = TileReader(Path("slide"), SPEC)
    with ThreadPoolExecutor(1) as pool:
        tile = pool.submit(reader.read, 32, 0)
        assert begun.wait(300)
        reader.close()
        reader.close()
        assert not made[0].closed
        with pytest.raises(DataError, match="was closed while its tiles were read; open it again"):
            reader.read(0, 0)
        go_on.set()
        assert tile.result()[0, 0, 0] == 2
    assert made[0].closed == 1


def test_many_threads_read_the_same_jpeg_pixels_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    # Aligned ones, and others that lie across several or over the edge.
    x = np.arange(200, dtype=np.int32) * 64 % 1024
    y = np.arange(200, dtype=np.int32) * 64 // 1024 * 256
    spec = TileSpec(256, 0.5)
    with TileReader(tmp_path / "a.tif", spec) as reader:
        alone = [reader.read(int(left), int(top)) for left, top in zip(x, y, strict=True)]
    together = [tile for _, _, run in stream_tiles([SlideTiles(tmp_path / "a.tif", spec, x, y)], 8) for tile in run]
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_many_threads_read_the_same_uncompressed_dicom_pixels_as_one(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    make_wsi(tmp_path / "slide", pixels, tile=128)
    slide = DicomSlideFile(tmp_path / "slide")

    def right(number: int) -> bool:
        x, y = number % 8 * 128, number // 8 % 8 * 128
        return np.array_equal(slide.read(0, x, y, 128, 128), pixels[y : y + 128, x : x + 128])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, range(1500)))
    finally:
        sys.setswitchinterval(before)
        slide.close()
