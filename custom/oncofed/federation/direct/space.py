"""Room for what arrives, used again and again: new pages cost the system more than what is written to them."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path


class Space:
    """Room for one body, in memory or in a file without a name, of which nothing stays when its process is killed.

    Args:
        size: bytes, at least one.
        folder: where its file lies; None: it lies in memory.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, size: int, folder: Path | None) -> None:
        self.size = size
        if folder is None:
            self._file = os.memfd_create("oncofed")
        else:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._file = os.dup(file.fileno())
        try:
            if folder is None:
                os.ftruncate(self._file, size)
            else:
                # A disk that is full says so here, and not when a page is touched, which would end the process.
                os.posix_fallocate(self._file, 0, size)
            self._mapped = mmap.mmap(self._file, size)
        except BaseException:
            os.close(self._file)
            raise

    @property
    def path(self) -> str:
        """Where it can be opened, in this process."""
        return f"/proc/self/fd/{self._file}"

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes. Through the file: a mapping would have the system look up each page first."""
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written

    def view(self) -> memoryview:
        """Return its bytes."""
        return memoryview(self._mapped)

    def close(self) -> None:
        """Give it back to the system. Nobody may look at its bytes any more."""
        self._mapped.close()
        os.close(self._file)


class Spaces:
    """Hands out room of any size; what nobody looks at any more is handed out again.

    Args:
        folder: where files lie; None: all lies in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._free: list[Space] = []
        self._closed = False

    def take(self, size: int) -> Space:
        """Return room for so many bytes.

        Raises:
            OSError: there is none.
        """
        with self._lock:
            for number, space in enumerate(self._free):
                if space.size == size:
                    return self._free.pop(number)
            # What travels has another size now.
            while self._free:
                self._free.pop().close()
        return Space(size, self._folder)

    def read(self, space: Space) -> memoryview:
        """Return what is in a space, which comes back by itself once nobody holds this or a part of it."""
        view = space.view()
        weakref.finalize(view, self.give_back, space).atexit = False
        return view

    def give_back(self, space: Space) -> None:
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
