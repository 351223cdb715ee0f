"""Unreadable slices are noted on their likely volume.

They leave no gap.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dicoms import make_series, volume
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register


def _register(tmp_path: Path) -> Manifest:
    return register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))


def _named(number: int) -> str:
    return f"IM{number:05d}"


@pytest.mark.wild("–", "a slice at the end that is cut off or overwritten: a shorter volume, unsaid")
@pytest.mark.parametrize("content", [b"\0" * 500, b"", b"DICM", None], ids=["zeros", "empty", "text", "half"])
@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("last", [0, 7])
def test_an_unreadable_file_is_noted_on_its_volume(
    tmp_path: Path, content: bytes | None, suffix: str, last: int
) -> None:
    files = make_series(tmp_path / "in" / "a", names=lambda number: f"{_named(number)}{suffix}")
    make_series(tmp_path / "in" / "b", volume(seed=1), patient="MRN-2")
    assert all("cannot be read" not in note for entry in _register(tmp_path).entries for note in entry.notes)
    data = files[last].read_bytes()
    files[last].write_bytes(data[: data.index(b"ISO") if b"ISO" in data else 200] if content is None else content)
    manifest = _register(tmp_path)
    (entry,) = [entry for entry in manifest.entries if str(entry.source).startswith("a/")]
    assert entry.shape == [12, 16, 7]
    told = f"a file of its folder cannot be read: a/{files[last].name}; slices at its end may be missing"
    assert told in entry.notes
    (other,) = [entry for entry in manifest.entries if str(entry.source).startswith("b/")]
    assert not any("cannot be read" in note for note in other.notes)


@pytest.mark.wild("–", "a broken file among the slices of two series")
def test_an_unreadable_file_is_noted_on_the_series_with_its_name(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", names=lambda number: f"CT{number}.dcm")
    make_series(tmp_path / "in", volume(seed=1), names=lambda number: f"MR{number}.dcm")
    files[-1].write_bytes(b"\0" * 300)
    (tmp_path / "in" / "readme.txt").write_text("x")
    (entry,) = [e for e in _register(tmp_path).entries if any("cannot be read" in note for note in e.notes)]
    assert "CT" in str(entry.source)
    (tmp_path / "in" / "CT7.dcm").rename(tmp_path / "in" / "lost.dcm")
    told = [
        e for e in _register(tmp_path).entries if any("in/lost.dcm" in f"in/{n}" or "lost.dcm" in n for n in e.notes)
    ]
    assert len(told) == 2
