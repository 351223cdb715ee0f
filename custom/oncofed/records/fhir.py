"""Records of FHIR R4 resources in files.

Bundles (``.json``) and bulk exports (``.ndjson``), hl7.org/fhir/R4. A resource is read for its patient, day, codes and
value; of several versions the newest counts. What is refuted, entered in error, planned or was not given is left out. A
day is as the hospital wrote it: no time zone moves it.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from oncofed.errors import DataError
from oncofed.records.fhir_resources import (
    Entry,
    Version,
    begin_of,
    codes_of,
    day_of,
    is_meant,
    mapping,
    medicine_of,
    patient_values,
    person_of,
    reference_of,
    referred,
    resources,
    sequence,
    value_of,
    version_of,
)
from oncofed.records.model import Doing, Event, Records, covered, nothing_said
from oncofed.records.spec import CohortSpec, ConceptSet, FhirSource

_KINDS = {
    "Condition": ("condition", ("onsetDateTime", "onsetPeriod", "recordedDate")),
    "Procedure": ("procedure", ("performedDateTime", "performedPeriod")),
    "MedicationAdministration": ("drug", ("effectiveDateTime", "effectivePeriod")),
    "MedicationStatement": ("drug", ("effectiveDateTime", "effectivePeriod", "dateAsserted")),
    "MedicationRequest": ("drug", ("authoredOn",)),
    "MedicationDispense": ("drug", ("whenHandedOver", "whenPrepared")),
    "Observation": ("", ("effectiveDateTime", "effectivePeriod", "effectiveInstant", "issued")),
}
_NO_VISIT = {"planned", "unknown"}


class FhirFiles:
    """A folder with FHIR resources.

    Args:
        source: its settings.
        doing: called as work goes on.
    """

    def __init__(self, source: FhirSource, doing: Doing = nothing_said) -> None:
        self._source = source
        self._doing = doing

    def read(self, spec: CohortSpec) -> Records:
        """Return the records that a cohort asks for.

        Raises:
            DataError: there are no files, one cannot be read, or none of the index's codes occurs.
        """
        reading = _Reading(spec, _hierarchy(self._source.hierarchy))
        files = [path for path in sorted(self._source.folder.rglob("*")) if path.suffix in {".json", ".ndjson"}]
        if not files:
            raise DataError(f"{self._source.folder}: found no file .json or .ndjson, expected FHIR R4 resources")
        queries = []
        for number, path in enumerate(files, 1):
            self._doing(f"file {number:,} of {len(files):,}", number - 1, len(files))
            digest = hashlib.sha256()
            for entry in resources(path, digest):
                reading.take(entry)
            queries.append((f"file {number} of {len(files)}", digest.hexdigest()))
        return reading.records(self._source.person, queries)


class _Visit(NamedTuple):
    subject: str
    days: tuple[date, ...]


class _Record(NamedTuple):
    """An event as it was read.

    Attributes:
        kind: of resource.
        subject: reference to the patient.
        event: without a day where there is a fault.
        sets: concept sets that its codes belong to.
        medicine: reference to the Medication whose codes count.
        fault: why it cannot be used.
    """

    kind: str
    subject: str
    event: Event
    sets: tuple[str, ...]
    medicine: str
    fault: str


class _Medicine(NamedTuple):
    codes: tuple[str, ...]


class _Patient(NamedTuple):
    values: dict[str, Any]


class _Reading:
    """What is kept of resources as they come, in any order.

    Args:
        spec: the cohort's settings.
        below: code -> codes below it.
    """

    def __init__(self, spec: CohortSpec, below: Mapping[str, frozenset[str]]) -> None:
        self._spec = spec
        self._sets = {name: _Codes(concept, below) for name, concept in spec.used_concepts.items()}
        self._has_drugs = any(one.domain == "drug" for one in self._sets.values())
        self._has_hierarchy = bool(below)
        self._today = date.today()
        self._kept: dict[tuple[str, str], tuple[Version, _Visit | _Record | _Medicine | _Patient | None]] = {}
        self._addresses: dict[str, tuple[str, str]] = {}
        self._occurring: set[str] = set()
        self._undated: set[str] = set()
        self._faults: Counter[str] = Counter()

    def take(self, entry: Entry) -> None:
        """Keep a resource, or that it was deleted."""
        resource = entry.resource
        kind, version = str(resource.get("resourceType", "")), version_of(resource)
        identifier = str(resource.get("id") or "")
        if kind in {"Patient", "Medication"}:
            identifier = identifier or entry.address.replace(":", "/").rpartition("/")[2]
            if entry.address:
                self._addresses[entry.address] = kind, identifier
        key = kind, identifier or f"#{len(self._kept)}"
        if key in self._kept and not version.replaces(self._kept[key][0]):
            return
        found = None if entry.deleted else self._read(kind, resource)
        if found or identifier:
            self._kept[key] = version, found

    def _read(self, kind: str, resource: Mapping[str, Any]) -> _Visit | _Record | _Medicine | _Patient | None:
        if kind == "Patient":
            return _Patient(patient_values(resource))
        if kind == "Medication":
            return _Medicine(codes_of(resource.get("code"))) if self._has_drugs else None
        if not is_meant(resource):
            return None
        if kind == "Encounter":
            return self._visit(resource)
        return self._record(kind, resource) if kind in _KINDS else None

    def _visit(self, resource: Mapping[str, Any]) -> _Visit | None:
        period = mapping(resource.get("period"))
        first, last = day_of(period.get("start")), day_of(period.get("end"))
        first = first or last
        found = covered(first, last or first, self._today)
        return _Visit(_subject_of(resource), found) if found and str(resource.get("status")) not in _NO_VISIT else None

    def _record(self, kind: str, resource: Mapping[str, Any]) -> _Record | None:
        domain, days = _KINDS[kind]
        codes, medicine = codes_of(resource.get("code")), ""
        if domain == "drug":
            codes, medicine = medicine_of(resource)
        sets = self._sets_of(domain, codes)
        if not sets and not (medicine and self._has_drugs):
            return None
        day, fault = begin_of(resource, days)
        if day and day > self._today:
            fault = "a date after today"
        value = value_of(resource)
        event = value._replace(day=day or value.day, codes=(*value.codes, *codes))
        return _Record(kind, _subject_of(resource), event, sets, medicine, fault)

    def _sets_of(self, domain: str, codes: Sequence[str]) -> tuple[str, ...]:
        """Return the concept sets that codes of a domain belong to; of none: measurements and observations."""
        domains = {domain} if domain else {"measurement", "observation"}
        found = [
            name for name, one in self._sets.items() if one.domain in domains and any(one.has(code) for code in codes)
        ]
        self._occurring.update(found)
        return tuple(found)

    def records(self, system: str, queries: list[tuple[str, str]]) -> Records:
        """Return the records.

        Args:
            system: of the identifier that is a person's key; empty: the resource's id.
            queries: what was read.

        Raises:
            DataError: none of the index's codes occurs.
        """
        patients = {key[1]: one.values for key, (_, one) in self._kept.items() if isinstance(one, _Patient)}
        merged = self._merged(patients)
        events: dict[str, dict[str, list[Event]]] = {name: defaultdict(list) for name in self._sets}
        visits: dict[str, list[date]] = defaultdict(list)
        for _, one in self._kept.values():
            if isinstance(one, _Visit):
                if person := self._resolved(one.subject, "Patient"):
                    visits[merged.get(person, person)] += one.days
                else:
                    self._faults["Encounter: a subject that is no Patient of the files"] += 1
            elif isinstance(one, _Record) and (found := self._found(one)):
                person, event, sets = found
                for name in sets:
                    events[name][merged.get(person, person)].append(event)
        index = self._spec.index.concept
        if not events[index]:
            codes = ", ".join(self._spec.concepts[index].codes)
            raise DataError(
                f"concepts.{index}: found no record with one of its codes ({codes}), expected the index event. Compare "
                "them with the codes that the files have"
            )
        persons = {}
        for person, values in patients.items():
            if person in events[index]:
                days = visits.get(person)
                observed = ((min(days), max(days)),) if days else ()
                persons[person] = person_of(values, person, system, observed, self._today)
        ordered = {
            name: {person: sorted(own, key=_by_day) for person, own in found.items()} for name, found in events.items()
        }
        undated = frozenset(merged.get(person, person) for person in self._undated)
        keys = Counter(
            person_of(values, person, system, (), self._today).key
            for person, values in patients.items()
            if person not in merged
        )
        shared = frozenset(key for key, count in keys.items() if key and count > 1)
        return Records(persons, ordered, queries, dict(self._faults), self._notes(), undated, shared)

    def _found(self, record: _Record) -> tuple[str, Event, tuple[str, ...]] | None:
        """Return a record's patient, event and concept sets; None where it cannot be used."""
        event, sets, fault = record.event, record.sets, record.fault
        if record.medicine:
            _, medicine = self._kept.get(("Medication", self._resolved(record.medicine, "Medication")), (None, None))
            if isinstance(medicine, _Medicine):
                sets = self._sets_of("drug", medicine.codes)
                if not sets:
                    return None
                event = event._replace(codes=(*event.codes, *medicine.codes))
            else:
                fault = "a medication that is not in the files"
        person = self._resolved(record.subject, "Patient")
        if not person:
            fault = fault or "a subject that is no Patient of the files"
        if fault:
            self._faults[f"{record.kind}: {fault}"] += 1
            if person and self._spec.index.concept in sets:
                self._undated.add(person)
            return None
        return person, event, sets

    def _resolved(self, reference: str, kind: str) -> str:
        """Return the id of the resource that a reference points to; empty: of another kind, or none."""
        if reference in self._addresses:
            found, identifier = self._addresses[reference]
            return identifier if found == kind else ""
        found, identifier = referred(reference)
        return identifier if found == kind or (not found and (kind, identifier) in self._kept) else ""

    def _merged(self, patients: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Return replaced patient -> patient in its place, who takes over a death."""
        by: dict[str, str] = {}
        for own, values in patients.items():
            for link in map(mapping, sequence(values["link"])):
                other, kind = self._resolved(reference_of(link.get("other")), "Patient"), link.get("type")
                if other in patients and other != own:
                    if kind == "replaced-by":
                        by[own] = other
                    elif kind == "replaces":
                        by.setdefault(other, own)
        merged = {}
        for old in by:
            new, passed = old, {old}
            while new in by and by[new] not in passed:
                new = by[new]
                passed.add(new)
            if new in by:
                continue  # a circle
            merged[old] = new
            for name in ("deceasedDateTime", "deceasedBoolean"):
                patients[new][name] = patients[new][name] or patients[old][name]
        return merged

    def _notes(self) -> list[str]:
        unseen = [name for name in self._sets if name not in self._occurring]
        notes = [f"concepts.{name}: no record has one of its codes" for name in unseen]
        if not self._has_hierarchy and any(concept.descendants for concept in self._spec.used_concepts.values()):
            notes.append(
                "codes are matched as they stand, since FHIR has no hierarchy: name one by fhir.hierarchy, or list "
                "all of them"
            )
        return notes


class _Codes:
    """The codes of a concept set."""

    def __init__(self, concept: ConceptSet, below: Mapping[str, frozenset[str]]) -> None:
        self.domain = concept.domain
        self._codes = _widened(concept.codes, below if concept.descendants else {})
        self._without = _widened(concept.without, below)

    def has(self, code: str) -> bool:
        """Return whether a code belongs to it."""
        return _is_among(code, self._codes) and not _is_among(code, self._without)


def _widened(codes: Sequence[str], below: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset(codes).union(*(below.get(code, frozenset()) for code in codes))


def _is_among(code: str, codes: frozenset[str]) -> bool:
    return code in codes or any(one.endswith("*") and code.startswith(one[:-1]) for one in codes)


def _hierarchy(file: Path | None) -> dict[str, frozenset[str]]:
    """Return code -> codes below it."""
    if file is None:
        return {}
    below: dict[str, set[str]] = defaultdict(set)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                below[row["ancestor"].strip()].add(row["descendant"].strip())
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(
            f"{file}: cannot be read ({type(error).__name__}), expected a CSV with the columns ancestor and descendant"
        ) from None
    return {code: frozenset(found) for code, found in below.items()}


def _subject_of(resource: Mapping[str, Any]) -> str:
    return reference_of(resource.get("subject") or resource.get("patient"))


def _by_day(event: Event) -> date:
    return event.day
