from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from oncofed.models.serialized import NAMES, Serialized, write_tensors

TENSORS = {
    "large": torch.randn(600, 1000),
    "one": torch.tensor(5),
    "turned": torch.randn(4, 6).t(),
    "no": torch.empty(0),
}


@pytest.mark.parametrize("start", [0, 1, 7, 8, 100, 900, 300_000])
def test_the_bytes_can_be_read_from_any_offset(start: int) -> None:
    whole = b"".join(Serialized(TENSORS).parts())
    assert len(whole) == Serialized(TENSORS).size
    assert b"".join(Serialized(TENSORS).parts(start)) == whole[start:]


def test_the_library_of_the_format_reads_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", TENSORS, {"by": "me"})
    found = load_file(tmp_path / "file")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == {"by": "me"}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_each_type_is_read_as_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    value = torch.ones(3).to(dtype)
    write_tensors(tmp_path / "file", {"value": value})
    found = load_file(tmp_path / "file")["value"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), value.view(torch.uint8))


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    value = torch.randn(6)
    write_tensors(tmp_path / "file", {"whole": value, "same": value, "part": value[2:4]})
    found = load_file(tmp_path / "file")
    assert torch.equal(found["same"], found["whole"])
    assert torch.equal(found["part"], value[2:4])


def test_where_writing_fails_the_old_file_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_tensors(path, TENSORS)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"other": torch.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    left, other = tmp_path / ".file.abc.unfinished", tmp_path / ".another.abc.unfinished"
    left.touch()
    other.touch()
    write_tensors(tmp_path / "file", TENSORS)
    assert not left.exists()
    assert other.exists()


def test_the_previous_file_is_kept_and_its_space_reused(tmp_path: Path) -> None:
    path, previous = tmp_path / "file", tmp_path / "before"
    write_tensors(path, {"value": torch.arange(1000)}, previous=previous)
    assert not previous.exists()
    first = path.stat().st_ino
    write_tensors(path, {"value": torch.arange(5)}, previous=previous)
    assert previous.stat().st_ino == first
    assert torch.equal(load_file(previous)["value"], torch.arange(1000))
    write_tensors(path, {"value": torch.arange(7)}, previous=previous)
    assert path.stat().st_ino == first
    assert torch.equal(load_file(path)["value"], torch.arange(7))
    assert torch.equal(load_file(previous)["value"], torch.arange(5))
    assert sorted(tmp_path.iterdir()) == [previous, path]


def test_the_current_file_is_not_overwritten_by_its_second_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, previous = tmp_path / "file", tmp_path / "before"
    write_tensors(path, {"value": torch.arange(1000)}, previous=previous)
    os.link(path, previous)  # as a process leaves them that is killed between its last two steps

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_tensors(path, {"value": torch.arange(7)}, previous=previous)
    assert torch.equal(load_file(path)["value"], torch.arange(1000))
    write_tensors(path, {"value": torch.arange(7)}, previous=previous)
    assert torch.equal(load_file(previous)["value"], torch.arange(1000))


def test_where_writing_fails_the_old_file_is_the_previous_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, previous = tmp_path / "file", tmp_path / "before"
    for number in range(3):
        write_tensors(path, {"value": torch.tensor(number)}, previous=previous)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"value": torch.tensor(3)}, previous=previous)
    assert load_file(path)["value"] == load_file(previous)["value"] == 2


def test_an_unsupported_type_is_named(tmp_path: Path) -> None:
    path, previous = tmp_path / "file", tmp_path / "before"
    write_tensors(path, TENSORS, previous=previous)
    with pytest.raises(OSError, match=r"no type torch\.complex128"):
        write_tensors(path, {"value": torch.zeros(1, dtype=torch.complex128)}, previous=previous)
    assert list(tmp_path.iterdir()) == [path]
