"""Which person of the records is which patient of the images."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from oncofed.errors import DataError
from oncofed.records.spec import Crosswalk


@dataclass(frozen=True)
class Link:
    """A patient of the images.

    Attributes:
        patient: identifier, as the images name it.
        accession: number of an examination; empty: all of the patient's.
    """

    patient: str
    accession: str = ""


@dataclass
class Links:
    """A crosswalk as it was read.

    Attributes:
        of: person -> patients of the images.
        ambiguous: patients whom several persons claim; they are left out.
        several: persons whose images are under several patients.
    """

    of: Mapping[str, tuple[Link, ...]]
    ambiguous: int = 0
    several: int = 0


def read_crosswalk(crosswalk: Crosswalk) -> Links:
    """Read a crosswalk.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    try:
        with crosswalk.file.open(encoding="utf-8-sig", newline="") as stream:
            sample = stream.readline()
            stream.seek(0)
            rows = csv.DictReader(stream, delimiter=max(",;\t", key=sample.count))
            wanted = [name for name in (crosswalk.person, crosswalk.patient, crosswalk.accession) if name]
            if lacks := [name for name in wanted if name not in (rows.fieldnames or ())]:
                raise DataError(
                    f"{crosswalk.file}: found no column {lacks[0]!r}, expected it in the first line. Say what it is "
                    "called under crosswalk in the cohort's file"
                )
            read = [
                (
                    (row[crosswalk.person] or "").strip(),
                    Link(
                        (row[crosswalk.patient] or "").strip(),
                        (row[crosswalk.accession] or "").strip() if crosswalk.accession else "",
                    ),
                )
                for row in rows
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        # What stands in it is not for a message.
        raise DataError(f"{crosswalk.file}: cannot be read as CSV ({type(error).__name__})") from None
    persons_of: dict[str, set[str]] = defaultdict(set)
    for person, link in read:
        if person and link.patient:
            persons_of[link.patient].add(person)
    ambiguous = {patient for patient, persons in persons_of.items() if len(persons) > 1}
    links: dict[str, dict[Link, None]] = defaultdict(dict)
    for person, link in read:
        if person and link.patient and link.patient not in ambiguous:
            links[person][link] = None
    several = sum(len({link.patient for link in found}) > 1 for found in links.values())
    return Links({person: tuple(found) for person, found in links.items()}, len(ambiguous), several)
