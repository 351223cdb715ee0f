"""Room for what arrives, used again and again: new pages cost the system more than what is written to them."""

from __future__ import annotations

import contextlib
import mmap
import os
import ssl
import tempfile
import threading
import weakref
from pathlib import Path
from typing import cast

# The most that is read at a time: few enough for a core's cache.
_PIECE = 1 << 18


class Buffer:
    """Room for one body, in memory or in a file without a name, of which nothing stays when its process is killed.

    Args:
        size: bytes, at least one.
        folder: where its file lies; None: it lies in memory.

    Attributes:
        filled: bytes from its beginning on that have arrived.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, size: int, folder: Path | None) -> None:
        self.size, self.filled = size, 0
        self._file: int | None = None
        if folder is None:
            self._mapped = mmap.mmap(-1, size)
            with contextlib.suppress(OSError, AttributeError):
                self._mapped.madvise(mmap.MADV_HUGEPAGE)
            return
        with tempfile.TemporaryFile(dir=folder) as file:
            # A disk that is full says so here, and not when a page is touched, which would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            self._mapped = mmap.mmap(file.fileno(), size)
            self._file = os.dup(file.fileno())
        self._piece = bytearray(_PIECE)
        self._closed = weakref.finalize(self, os.close, self._file)

    def add(self, data: bytes) -> None:
        """Add what has arrived."""
        self._write(memoryview(data))

    def receive(self, connection: ssl.SSLSocket) -> int:
        """Add some of what arrives; return how many bytes: none where the connection has ended.

        Raises:
            OSError: nothing arrives.
        """
        wanted = min(self.size - self.filled, _PIECE)
        if self._file is None:
            with self.view()[self.filled : self.filled + wanted] as target:
                count = _fill(connection, target)
            self.filled += count
            return count
        # Through the file: where it was mapped the system would look up each page before it is written.
        piece = memoryview(self._piece)[:wanted]
        count = _fill(connection, piece)
        self._write(piece[:count])
        return count

    def view(self) -> memoryview:
        """Return its bytes."""
        return memoryview(self._mapped)

    def close(self) -> None:
        """Give it back to the system. Nobody may look at its bytes any more."""
        self._mapped.close()
        if self._file is not None:
            self._closed()

    def _write(self, data: memoryview) -> None:
        if self._file is None:
            self._mapped[self.filled : self.filled + len(data)] = data
            self.filled += len(data)
            return
        while data:
            written = os.pwrite(self._file, data, self.filled)
            data, self.filled = data[written:], self.filled + written


def _fill(connection: ssl.SSLSocket, target: memoryview) -> int:
    """Fill a part of memory, by a record of TLS at a time; return how much arrived."""
    count, size = 0, len(target)
    while count < size:
        # What ``recv_into`` calls: a record has 16 KB, so that a call more for each takes a twelfth of the time.
        arrived = connection.read(size - count, target[count:])
        if not arrived:
            break
        count += cast("int", arrived)
    return count


class BufferPool:
    """Hands out room of any size; what nobody looks at any more is handed out again.

    Args:
        folder: where files lie; None: all lies in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._free: list[Buffer] = []
        self._closed = False

    def take(self, size: int) -> Buffer:
        """Return room for so many bytes.

        Raises:
            OSError: there is none.
        """
        with self._lock:
            for number, space in enumerate(self._free):
                if space.size == size:
                    space.filled = 0
                    return self._free.pop(number)
            # What travels has another size now.
            while self._free:
                self._free.pop().close()
        return Buffer(size, self._folder)

    def read(self, space: Buffer) -> memoryview:
        """Return what is in a space, which comes back by itself once nobody holds this or a part of it."""
        view = space.view()
        weakref.finalize(view, self.give_back, space).atexit = False
        return view

    def give_back(self, space: Buffer) -> None:
        """Take a space back in which nothing is of use."""
        # Python may call this at any time, in the middle of ``take`` too: so there is no lock.
        if self._closed:
            space.close()
        else:
            self._free.append(space)

    def close(self) -> None:
        """Keep no room any longer; what somebody looks at is given back later."""
        self._closed = True
        while self._free:
            self._free.pop().close()
