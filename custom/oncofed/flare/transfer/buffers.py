"""Reuse memory and files for received tensors.

New pages cost the system more time than writing to them.
"""

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

# Bytes read at a time: these fit into a core's cache.
_CHUNK = 1 << 18


class Buffer:
    """A buffer for one body, in memory or on disk.

    The file has no name: nothing of it is left when its process is killed.

    Args:
        size: bytes, at least one.
        folder: of its file; None: in memory.

    Attributes:
        filled: bytes that have arrived, counted from the start.

    Raises:
        OSError: memory or disk is full.
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
            # A full disk raises here, and not when a page is touched, which would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            self._mapped = mmap.mmap(file.fileno(), size)
            self._file = os.dup(file.fileno())
        self._chunk = bytearray(_CHUNK)
        self._closed = weakref.finalize(self, os.close, self._file)

    def add(self, data: bytes) -> None:
        """Append bytes that have arrived."""
        self._write(memoryview(data))

    def receive(self, connection: ssl.SSLSocket) -> int:
        """Append received bytes; return their count, 0 at the end.

        Raises:
            OSError: nothing arrives.
        """
        wanted = min(self.size - self.filled, _CHUNK)
        if self._file is None:
            with self.view()[self.filled : self.filled + wanted] as target:
                count = _fill(connection, target)
            self.filled += count
            return count
        # Through the file: with a mapping the system would look up each page before it is written.
        chunk = memoryview(self._chunk)[:wanted]
        count = _fill(connection, chunk)
        self._write(chunk[:count])
        return count

    def view(self) -> memoryview:
        """Return its bytes."""
        return memoryview(self._mapped)

    def close(self) -> None:
        """Return it to the system; no views may be left."""
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
    """Fill memory by TLS records; return how much arrived."""
    count, size = 0, len(target)
    while count < size:
        # ``recv_into`` calls this: one more call for each record of 16 KB takes a twelfth of the time.
        arrived = connection.read(size - count, target[count:])
        if not arrived:
            break
        count += cast("int", arrived)
    return count


class BufferPool:
    """Hands out buffers, and reuses those without a view.

    Args:
        folder: of files; None: all buffers are in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._free: list[Buffer] = []
        self._closed = False

    def take(self, size: int) -> Buffer:
        """Return a buffer of ``size`` bytes.

        Raises:
            OSError: memory or disk is full.
        """
        with self._lock:
            for number, buffer in enumerate(self._free):
                if buffer.size == size:
                    buffer.filled = 0
                    return self._free.pop(number)
            # Bodies have another size now.
            while self._free:
                self._free.pop().close()
        return Buffer(size, self._folder)

    def read(self, buffer: Buffer) -> memoryview:
        """Return a view that releases the buffer when dropped."""
        view = buffer.view()
        weakref.finalize(view, self.give_back, buffer).atexit = False
        return view

    def give_back(self, buffer: Buffer) -> None:
        """Take back a buffer whose content is no longer needed."""
        # No lock: Python may call this at any time, also in the middle of ``take``.
        if self._closed:
            buffer.close()
        else:
            self._free.append(buffer)

    def close(self) -> None:
        """Close all buffers; those with a view are closed later."""
        self._closed = True
        while self._free:
            self._free.pop().close()
