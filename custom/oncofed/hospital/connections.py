"""Connections to the archive of ``pacs.yaml``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from oncofed.errors import SpecError
from oncofed.hospital.archive import Archive
from oncofed.hospital.settings import PacsSettings

Connect = Callable[[], Archive]


@contextlib.contextmanager
def connections(settings: PacsSettings) -> Iterator[Connect]:
    """Yield a function that opens a connection, of one thread.

    Raises:
        SpecError: a library is missing, or what is needed to connect cannot be used.
    """
    if settings.dicomweb:
        web = settings.dicomweb
        try:
            from oncofed.hospital.dicomweb import DicomWebArchive  # noqa: PLC0415 - of an extra
        except ImportError:
            raise SpecError("dicomweb needs dicomweb-client: pip install 'oncofed[hospital]'") from None
        yield lambda: DicomWebArchive(web)
        return
    dimse = settings.dimse
    assert dimse is not None
    try:
        from oncofed.hospital.dimse import DimseArchive, MoveReceiver  # noqa: PLC0415 - of an extra
    except ImportError:
        raise SpecError("dimse needs pynetdicom: pip install 'oncofed[hospital]'") from None
    if dimse.retrieve == "get":
        yield lambda: DimseArchive(dimse)
        return
    with MoveReceiver(dimse) as receiver:
        yield lambda: DimseArchive(dimse, receiver)
