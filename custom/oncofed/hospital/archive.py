"""What an archive is asked for, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from oncofed.errors import TransferError
from oncofed.prediction.watching.storage_scp import StoredObject


class ArchiveAwayError(TransferError):
    """The archive does not answer, perhaps for a while."""


class HoursOverError(ArchiveAwayError):
    """The hours in which images may be fetched are over."""


class AccessRefusedError(TransferError):
    """The archive does not let this machine in."""


class Stopped(Exception):  # noqa: N818 - not a fault
    """The pull ends; what arrives is not kept."""


@dataclass(frozen=True)
class Study:
    """A study that an archive has.

    Attributes:
        uid: its Study Instance UID.
        patient: PatientID.
        accession: AccessionNumber.
        person: name, birth date and sex, to find a patient with two identifiers; empty: not all are stated.
    """

    uid: str
    patient: str
    accession: str
    person: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """A series that an archive has.

    Attributes:
        study: that it is of.
        uid: its Series Instance UID.
        modality: DICOM's code.
        description: of the series.
        count: number of its instances; None: the archive does not say.
    """

    study: Study
    uid: str
    modality: str = ""
    description: str = ""
    count: int | None = None


@dataclass(frozen=True)
class Instance:
    """An instance that an archive has.

    Attributes:
        uid: its SOP Instance UID.
        sop_class: its SOP Class UID; empty: the archive does not say.
    """

    uid: str
    sop_class: str = ""


class Arriving(StoredObject, Protocol):
    """An object that arrives from an archive."""

    def keep(self) -> None:
        """Keep the object, which is complete."""
        ...


# Called for each object that begins to arrive: its SOP class, instance and transfer syntax where the protocol says so
# ahead of the object, which then comes without the header of a file.
Begin = Callable[[str, str, str], Arriving]


class Archive(Protocol):
    """A connection to an archive, of one thread.

    Every method raises ``ArchiveAwayError`` and ``AccessRefusedError``, whose messages name no patient, and
    ``TransferError`` for an answer that another try would not change.
    """

    def studies(self, keys: Mapping[str, str]) -> list[Study]:
        """Return the studies that match, DICOM keyword -> value."""
        ...

    def series(self, study: Study) -> list[Series]:
        """Return a study's series."""
        ...

    def instances(self, series: Series) -> list[Instance]:
        """Return a series' instances; none if it is gone."""
        ...

    def fetch(self, series: Series, wanted: Sequence[Instance] | None, begin: Begin) -> None:
        """Fetch instances of a series; None: all of them."""
        ...

    def store(self, file: Path) -> None:
        """Store a DICOM file."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...
