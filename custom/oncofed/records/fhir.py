"""Records of FHIR R4 resources in files.

Bundles (``.json``) and bulk exports (``.ndjson``), hl7.org/fhir/R4. A resource is read for its patient, day, codes and
value; what is refuted or entered in error is left out. A day is as the hospital wrote it: no time zone moves it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from oncofed.errors import DataError
from oncofed.records.model import Event, Person, Records
from oncofed.records.spec import CohortSpec, ConceptSet, FhirSource

# Addresses of code systems -> vocabularies as OMOP names them.
_VOCABULARIES = {
    "http://snomed.info/sct": "SNOMED",
    "http://loinc.org": "LOINC",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "http://hl7.org/fhir/sid/icd-9-cm": "ICD9CM",
    "http://fhir.de/CodeSystem/bfarm/icd-10-gm": "ICD10GM",
    "http://terminology.hl7.org/CodeSystem/icd-o-3": "ICDO3",
    "http://hl7.org/fhir/sid/icd-o-3": "ICDO3",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RxNorm",
    "http://www.whocc.no/atc": "ATC",
    "http://www.ama-assn.org/go/cpt": "CPT4",
    "http://hl7.org/fhir/sid/ndc": "NDC",
}
_KINDS = {
    "Condition": ("condition", ("onsetDateTime", "onsetPeriod", "recordedDate")),
    "Procedure": ("procedure", ("performedDateTime", "performedPeriod")),
    "MedicationAdministration": ("drug", ("effectiveDateTime", "effectivePeriod")),
    "MedicationStatement": ("drug", ("effectiveDateTime", "effectivePeriod", "dateAsserted")),
    "MedicationRequest": ("drug", ("authoredOn",)),
    "MedicationDispense": ("drug", ("whenHandedOver", "whenPrepared")),
    "Observation": ("", ("effectiveDateTime", "effectivePeriod", "effectiveInstant", "issued")),
}
_NOT_MEANT = {"entered-in-error", "refuted", "not-done", "cancelled"}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_YEAR = re.compile(r"\d{4}(-\d{2})?\Z")


class FhirFiles:
    """A folder with FHIR resources.

    Args:
        source: its settings.
        doing: called with what is read next.
    """

    def __init__(self, source: FhirSource, doing: Callable[[str], object] = lambda what: None) -> None:
        self._source = source
        self._doing = doing

    def read(self, spec: CohortSpec) -> Records:
        """Return the records that a cohort asks for.

        Raises:
            DataError: there are no files, one cannot be read, or none of a concept set's codes occurs.
        """
        reading = _Reading(spec, _hierarchy(self._source.hierarchy))
        files = [path for path in sorted(self._source.folder.rglob("*")) if path.suffix in {".json", ".ndjson"}]
        if not files:
            raise DataError(f"{self._source.folder}: found no file .json or .ndjson, expected FHIR R4 resources")
        queries = []
        for number, path in enumerate(files, 1):
            self._doing(f"file {number:,} of {len(files):,}")
            digest = hashlib.sha256()
            for address, resource in _resources(path, digest):
                reading.take(address, resource)
            queries.append((f"file {number} of {len(files)}", digest.hexdigest()))
        return reading.records(self._source.person, queries)


class _Reading:
    """What is kept of resources as they come, in any order.

    Args:
        spec: the cohort's settings.
        below: code -> codes below it.
    """

    def __init__(self, spec: CohortSpec, below: Mapping[str, frozenset[str]]) -> None:
        self._spec = spec
        self._sets = {name: _Codes(concept, below) for name, concept in spec.used_concepts.items()}
        self._has_hierarchy = bool(below)
        self._persons: dict[str, dict[str, Any]] = {}
        self._same: dict[str, str] = {}
        self._events: dict[str, dict[str, list[Event]]] = {name: defaultdict(list) for name in self._sets}
        self._visits: dict[str, list[date]] = defaultdict(list)
        self._undated: set[str] = set()
        self._faults: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set()

    def take(self, address: str, resource: Mapping[str, Any]) -> None:
        """Keep a resource.

        Args:
            address: of its entry in a bundle; empty: none.
            resource: with its resourceType.
        """
        kind, identifier = str(resource.get("resourceType", "")), str(resource.get("id", ""))
        if identifier:
            if (kind, identifier) in self._seen:
                return  # exported twice
            self._seen.add((kind, identifier))
        if kind == "Patient":
            own = identifier or _last(address)
            self._persons[own] = _kept_of(resource)
            if address:
                self._same[_last(address)] = own
        elif kind == "Encounter":
            self._take_visit(resource)
        elif kind in _KINDS:
            self._take_event(kind, resource)

    def _take_visit(self, resource: Mapping[str, Any]) -> None:
        if resource.get("status") in _NOT_MEANT:
            return
        period = resource.get("period") or {}
        for text in (period.get("start"), period.get("end")):
            if found := _day(text):
                self._visits[_patient_of(resource)].append(found)

    def _take_event(self, kind: str, resource: Mapping[str, Any]) -> None:
        if (
            resource.get("status") in _NOT_MEANT
            or set(_codes_of(resource.get("verificationStatus"), bare=True)) & _NOT_MEANT
        ):
            return
        domain, days = _KINDS[kind]
        codes = _codes_of(resource.get("code") or resource.get("medicationCodeableConcept"))
        wanted = [
            name
            for name, one in self._sets.items()
            if (one.domain == domain or (not domain and one.domain in {"measurement", "observation"}))
            and any(one.has(code) for code in codes)
        ]
        if not wanted:
            return
        text = next((_start(resource[name]) for name in days if resource.get(name)), None)
        found = _day(text)
        if found is None:
            why = "a date that is not to the day" if text and _YEAR.match(text) else "no date"
            self._faults[f"{kind}: {why}"] += 1
            if self._spec.index.concept in wanted:
                self._undated.add(_patient_of(resource))
            return
        quantity = resource.get("valueQuantity") or {}
        number = quantity.get("value")
        value = _codes_of(resource.get("valueCodeableConcept"))
        event = Event(
            found,
            float(number) if isinstance(number, int | float) else None,
            str(quantity.get("code") or quantity.get("unit") or ""),
            (*value, *codes),
        )
        for name in wanted:
            self._events[name][_patient_of(resource)].append(event)

    def records(self, system: str, queries: list[tuple[str, str]]) -> Records:
        """Return the records.

        Args:
            system: of the identifier that is a person's key; empty: the resource's id.
            queries: what was read.

        Raises:
            DataError: none of a concept set's codes occurs.
        """
        events = {}
        for name, found in self._events.items():
            joined: dict[str, list[Event]] = defaultdict(list)
            for person, own in found.items():
                joined[self._same.get(person, person)] += own
            events[name] = {person: sorted(own, key=_by_day) for person, own in joined.items()}
        index = self._spec.index.concept
        if not events[index]:
            codes = ", ".join(self._spec.concepts[index].codes)
            raise DataError(
                f"concepts.{index}: found no record with one of its codes ({codes}), expected the index event. Compare "
                "them with the codes that the files have"
            )
        visits: dict[str, list[date]] = defaultdict(list)
        for person, days in self._visits.items():
            visits[self._same.get(person, person)] += days
        persons = {
            identifier: _person(values, identifier, system, visits.get(identifier, ()))
            for identifier, values in self._persons.items()
            if identifier in events[index]
        }
        records = Records(persons, events, queries, dict(self._faults))
        records.undated = frozenset(self._same.get(person, person) for person in self._undated)
        if not self._has_hierarchy and any(concept.descendants for concept in self._spec.used_concepts.values()):
            records.notes.append(
                "codes are matched as they stand, since FHIR has no hierarchy: name one by fhir.hierarchy, or list "
                "all of them"
            )
        return records


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


def _resources(path: Path, digest: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (address, resource) of a file.

    Raises:
        DataError: it is not JSON.
    """
    line = 0
    try:
        if path.suffix == ".ndjson":
            with path.open("rb") as stream:
                for text in stream:
                    line += 1
                    digest.update(text)
                    if text.strip():
                        yield from _within(json.loads(text))
        else:
            content = path.read_bytes()
            digest.update(content)
            yield from _within(json.loads(content))
    except (OSError, ValueError, RecursionError) as error:
        at = f":{line}" if line else ""
        raise DataError(f"{path}{at}: cannot be read as JSON ({type(error).__name__}). Export the file again") from None


def _within(value: Any, address: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, dict):
        return
    if value.get("resourceType") == "Bundle":
        for entry in value.get("entry") or ():
            if isinstance(entry, dict):
                yield from _within(entry.get("resource"), str(entry.get("fullUrl") or ""))
    elif "resourceType" in value:
        yield address, value


def _kept_of(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is needed of a patient, without names and addresses."""
    return {
        name: resource.get(name)
        for name in ("birthDate", "gender", "deceasedDateTime", "deceasedBoolean", "identifier")
    }


def _person(values: Mapping[str, Any], identifier: str, system: str, visits: Sequence[date]) -> Person:
    key = identifier
    if system:
        own = [one for one in values["identifier"] or () if isinstance(one, dict) and one.get("system") == system]
        key = str(own[0].get("value") or "") if own else ""
    died = _day(values["deceasedDateTime"])
    dead = bool(values["deceasedDateTime"] or values["deceasedBoolean"])
    sex = str(values["gender"] or "")
    return Person(
        key,
        _born(values["birthDate"]),
        sex if sex in {"female", "male", "other"} else "",
        died,
        dead and died is None,
        ((min(visits), max(visits)),) if visits else (),
    )


def _born(text: Any) -> date | None:
    """Return a date of birth; of a year or a month its middle."""
    if found := _day(text):
        return found
    if isinstance(text, str) and _YEAR.match(text):
        return date(int(text[:4]), int(text[5:7]) if len(text) > 4 else 7, 15 if len(text) > 4 else 1)
    return None


def _codes_of(concept: Any, *, bare: bool = False) -> tuple[str, ...]:
    """Return the codings of a concept as VOCABULARY:CODE; bare: without their vocabularies."""
    found = []
    for coding in (concept or {}).get("coding") or () if isinstance(concept, dict) else ():
        vocabulary, code = _VOCABULARIES.get(str(coding.get("system") or "")), coding.get("code")
        if code and (vocabulary or bare):
            found.append(str(code) if bare else f"{vocabulary}:{code}")
    return tuple(found)


def _patient_of(resource: Mapping[str, Any]) -> str:
    reference = (resource.get("subject") or resource.get("patient") or {}).get("reference")
    return _last(str(reference or ""))


def _last(address: str) -> str:
    """Return the identifier in a reference: Patient/1, an address, or urn:uuid:1."""
    return re.split(r"[/:]", address.partition("/_history/")[0])[-1]


def _start(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("start")
    return value if isinstance(value, str) else None


def _day(text: Any) -> date | None:
    """Return the day of a date or a time; None where it is not to the day."""
    found = _DAY.match(text) if isinstance(text, str) else None
    try:
        return date.fromisoformat(found[0]) if found else None
    except ValueError:
        return None


def _by_day(event: Event) -> date:
    return event.day
