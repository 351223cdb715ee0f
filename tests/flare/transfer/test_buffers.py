from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest
import torch

from oncofed.flare.transfer.buffers import BufferPool


@pytest.mark.parametrize("in_file", [False, True])
def test_a_buffer_is_reused_once_no_view_is_left(tmp_path: Path, in_file: bool) -> None:
    spaces = BufferPool(tmp_path if in_file else None)
    space = spaces.take(4096)
    space.add(bytes(range(256)) * 16)
    assert space.filled == 4096
    whole = torch.frombuffer(spaces.read(space), dtype=torch.uint8)
    part = whole[1000:1010]
    del whole
    gc.collect()
    other = spaces.take(4096)
    assert other is not space
    assert part.tolist() == [number % 256 for number in range(1000, 1010)]
    del part
    gc.collect()
    again = spaces.take(4096)
    assert again is space
    assert again.filled == 0
    spaces.give_back(other)
    spaces.give_back(again)
    spaces.close()


def test_a_buffer_of_another_size_is_freed(tmp_path: Path) -> None:
    spaces = BufferPool(tmp_path)
    spaces.give_back(spaces.take(4096))
    one = _open_in(tmp_path)
    spaces.give_back(spaces.take(8192))
    assert _open_in(tmp_path) == one > 0
    spaces.close()
    lost = spaces.take(4096)
    spaces.give_back(lost)
    assert _open_in(tmp_path) == 0


def test_a_buffers_file_has_no_name(tmp_path: Path) -> None:
    spaces = BufferPool(tmp_path)
    space = spaces.take(4096)
    space.add(b"weights")
    assert not list(tmp_path.iterdir())
    assert bytes(space.view()[:7]) == b"weights"
    spaces.give_back(space)
    spaces.close()


def test_a_full_disk_raises_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"(?i)space|large"):
        BufferPool(tmp_path).take(1 << 60)
    assert _open_in(tmp_path) == 0


def _open_in(folder: Path) -> int:
    """Count a folder's open files, including deleted ones."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            found += str(descriptor.readlink()).startswith(f"{folder}/")
    return found
