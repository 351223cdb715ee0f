"""Parts of an HTTP answer, as they arrive (RFC 2046, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from oncofed.hospital.archive import ArchiveAwayError, Arriving

_LONGEST_HEADER = 64 << 10


def take_parts(chunks: Iterable[bytes], boundary: bytes, begin: Callable[[], Arriving]) -> int:
    """Write each part as it arrives, and return their number.

    No part is held in memory: an instance of a whole slide has gigabytes.

    Args:
        chunks: the body, in pieces of any size.
        boundary: of the parts, as the answer's header states it.
        begin: called for each part.

    Raises:
        ArchiveAwayError: the body ends before its last part does; that part is discarded.
    """
    delimiter = b"\r\n--" + boundary
    buffer = bytearray(b"\r\n")  # the first boundary may begin the body
    part: Arriving | None = None
    in_body, count = True, 0  # what stands ahead of the first boundary is the body of no part
    try:
        for chunk in chunks:
            buffer += chunk
            while True:
                if in_body:
                    at = buffer.find(delimiter)
                    if at < 0:
                        # A delimiter may have begun at the end of the buffer.
                        ready = len(buffer) - len(delimiter) + 1
                        if part and ready > 0:
                            part.write(bytes(memoryview(buffer)[:ready]))
                        del buffer[: max(0, ready)]
                        break
                    if part:
                        part.write(bytes(memoryview(buffer)[:at]))
                        part.keep()
                        part, count = None, count + 1
                    del buffer[: at + len(delimiter)]
                    in_body = False
                if buffer[:2] == b"--":
                    return count
                end = buffer.find(b"\r\n\r\n")
                if end < 0:
                    if len(buffer) > _LONGEST_HEADER:
                        raise ArchiveAwayError("the archive's answer is no multipart message")
                    break
                del buffer[: end + 4]
                part, in_body = begin(), True
        raise ArchiveAwayError("the archive's answer broke off")
    finally:
        if part:
            part.discard()
