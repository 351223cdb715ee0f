"""Parts of an answer, however the network cuts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed.hospital.archive import ArchiveAwayError
from oncofed.hospital.multipart import take_parts


class Part:
    """A part that arrives in memory."""

    path, sop_class, name = Path(), "", ""

    def __init__(self) -> None:
        self.content, self.is_kept, self.is_discarded = b"", False, False
        self.file = self

    def write(self, data: bytes) -> None:
        self.content += data

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def keep(self) -> None:
        self.is_kept = True

    def discard(self) -> None:
        self.is_discarded = True


def body(contents: list[bytes]) -> bytes:
    head = b"Content-Type: application/dicom\r\n\r\n"
    return b"".join(b"\r\n--edge\r\n" + head + content for content in contents) + b"\r\n--edge--\r\n"


def taken(message: bytes, size: int) -> list[Part]:
    parts: list[Part] = []

    def begin() -> Part:
        parts.append(Part())
        return parts[-1]

    chunks = (message[start : start + size] for start in range(0, len(message), size))
    assert take_parts(chunks, b"edge", begin) == len(parts)
    return parts


pieces = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"edge", b"\r\n--edg", b"x" * 40]), max_size=8).map(
    b"".join
)


@given(st.lists(pieces, max_size=4), st.integers(1, 50))
def test_parts_are_what_was_sent(contents: list[bytes], size: int) -> None:
    contents = [content for content in contents if b"\r\n--edge" not in b"\r\n" + content + b"\r\n--edg"]
    parts = taken(body(contents), size)
    assert [part.content for part in parts] == contents
    assert all(part.is_kept for part in parts)


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_a_body_that_breaks_off_keeps_whole_parts_alone(at: int, size: int) -> None:
    contents = [b"one" * 20, b"two" * 20]
    message = body(contents)
    cut = message[: at % (len(message) - 4)]
    parts: list[Part] = []

    def begin() -> Part:
        parts.append(Part())
        return parts[-1]

    with pytest.raises(ArchiveAwayError):
        take_parts((cut[start : start + size] for start in range(0, len(cut), size)), b"edge", begin)
    kept = [part.content for part in parts if part.is_kept]
    assert kept == contents[: len(kept)]
    assert all(part.is_discarded for part in parts if not part.is_kept)
