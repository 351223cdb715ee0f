"""What FHIR R4 resources say: codes, days, versions, references.

Source: hl7.org/fhir/R4. Files are as hospitals export them: what is not of the expected form is read as absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from oncofed.errors import DataError
from oncofed.records.model import Event, Period, Person

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
# Statuses of what was not, was not done, or was not given; hl7.org/fhir/R4, each resource's status.
_NOT_MEANT = {
    "entered-in-error", "refuted", "not-done", "cancelled", "preparation", "not-taken", "intended", "draft", "declined",
    "registered",
}  # fmt: skip
_NOT_ORDERED = {"proposal", "plan", "option"}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_YEAR = re.compile(r"\d{4}(-\d{2})?\Z")
_TYPED = re.compile(r"(?:^|/)([A-Za-z]+)/([A-Za-z0-9.-]{1,64})\Z")


class Version(NamedTuple):
    """Which of several states of a resource it is.

    Attributes:
        when: seconds since 1970 of its last change; None: not stated.
        number: of the version; None: not stated, or no number.
    """

    when: float | None = None
    number: int | None = None

    def replaces(self, other: Version) -> bool:
        """Return whether it is newer than one that was read before."""
        if self.when is not None and other.when is not None and self.when != other.when:
            return self.when > other.when
        if self.number is not None and other.number is not None:
            return self.number >= other.number
        return True  # the later one in reading order


class Entry(NamedTuple):
    """A resource of a file.

    Attributes:
        address: of its entry in a bundle; empty: none.
        resource: with its resourceType.
        deleted: a history says that it was deleted; of the resource are its type, id and time alone.
    """

    address: str
    resource: Mapping[str, Any]
    deleted: bool = False


def resources(path: Path, digest: Any) -> Iterator[Entry]:
    """Yield the resources of a file, each older than what replaces it.

    Args:
        path: of a bundle (.json) or bulk export (.ndjson).
        digest: of hashlib; takes the file's content.

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


def _within(value: Any, address: str = "") -> Iterator[Entry]:
    resource = mapping(value)
    if resource.get("resourceType") != "Bundle":
        if "resourceType" in resource:
            yield Entry(address, resource)
        return
    entries = sequence(resource.get("entry"))
    # A history begins with what is newest.
    for entry in map(mapping, reversed(entries) if resource.get("type") == "history" else entries):
        request = mapping(entry.get("request"))
        if request.get("method") == "DELETE":
            if found := _TYPED.search(plain_address(request.get("url"))):
                meta = {"lastUpdated": mapping(entry.get("response")).get("lastModified")}
                yield Entry("", {"resourceType": found[1], "id": found[2], "meta": meta}, deleted=True)
        else:
            yield from _within(entry.get("resource"), plain_address(entry.get("fullUrl")))


def mapping(value: Any) -> Mapping[str, Any]:
    """Return an object of JSON; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> Sequence[Any]:
    """Return a list of JSON; an empty one for anything else."""
    return value if isinstance(value, list) else ()


def version_of(resource: Mapping[str, Any]) -> Version:
    """Return a resource's version."""
    meta = mapping(resource.get("meta"))
    text, number = meta.get("lastUpdated"), str(meta.get("versionId") or "")
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if isinstance(text, str) else None
    except (ValueError, OverflowError):
        when = None
    return Version(when, int(number) if number.isdecimal() else None)


def plain_address(text: Any) -> str:
    """Return an address without its version; empty for what is none."""
    return text.partition("/_history/")[0] if isinstance(text, str) else ""


def reference_of(value: Any) -> str:
    """Return where a reference points: Patient/1, an address, urn:uuid:1, or #1; empty: nowhere."""
    return plain_address(mapping(value).get("reference"))


def referred(reference: str) -> tuple[str, str]:
    """Return type and id in a reference; the type is empty where it has none (urn:uuid:1)."""
    if found := _TYPED.search(reference):
        return found[1], found[2]
    return ("", reference.rpartition(":")[2]) if reference.startswith("urn:") else ("", "")


def codes_of(concept: Any, *, bare: bool = False) -> tuple[str, ...]:
    """Return the codings of a concept as VOCABULARY:CODE; bare: without their vocabularies."""
    found = []
    for coding in map(mapping, sequence(mapping(concept).get("coding"))):
        vocabulary, code = _VOCABULARIES.get(str(coding.get("system") or "")), coding.get("code")
        if code and (vocabulary or bare):
            found.append(str(code) if bare else f"{vocabulary}:{code}")
    return tuple(found)


def medicine_of(resource: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Return the codes of a medication and, where these are in another resource, the reference to it."""
    if codes := codes_of(resource.get("medicationCodeableConcept")):
        return codes, ""
    if "medicationReference" not in resource:
        return (), ""
    reference = reference_of(resource["medicationReference"])
    for one in map(mapping, sequence(resource.get("contained"))):
        if reference.startswith("#") and one.get("id") == reference[1:]:
            return codes_of(one.get("code")), ""
    return (), reference or "#"


def is_meant(resource: Mapping[str, Any]) -> bool:
    """Return whether a resource says that something was so, was done or was ordered."""
    return (
        str(resource.get("status")) not in _NOT_MEANT
        and not set(codes_of(resource.get("verificationStatus"), bare=True)) & _NOT_MEANT
        and resource.get("doNotPerform") is not True
        and str(resource.get("intent")) not in _NOT_ORDERED
    )


def value_of(resource: Mapping[str, Any]) -> Event:
    """Return a resource's value as an event, whose day is not set yet."""
    quantity = mapping(resource.get("valueQuantity"))
    unit = str(quantity.get("code") or quantity.get("unit") or "")
    # Less than 20 is no number.
    number = None if quantity.get("comparator") else _number(quantity.get("value"))
    return Event(date.min, number, unit, codes_of(resource.get("valueCodeableConcept")))


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def patient_values(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is needed of a patient, without names and addresses."""
    names = ("birthDate", "gender", "deceasedDateTime", "deceasedBoolean", "identifier", "link")
    return {name: resource.get(name) for name in names}


def person_of(
    values: Mapping[str, Any], identifier: str, system: str, observed: tuple[Period, ...], today: date
) -> Person:
    """Return a person.

    Args:
        values: of :func:`patient_values`.
        identifier: the resource's id.
        system: of the identifier that is the person's key; empty: the resource's id.
        observed: periods that the records cover.
        today: last day on which a death can be.
    """
    key = identifier
    if system:
        own = [one for one in map(mapping, sequence(values["identifier"])) if one.get("system") == system]
        own.sort(key=lambda one: one.get("use") == "old")
        key = str(own[0].get("value") or "") if own else ""
    died = day_of(values["deceasedDateTime"])
    if died and died > today:
        died = None
    dead = bool(values["deceasedDateTime"] or values["deceasedBoolean"])
    sex = str(values["gender"] or "")
    return Person(
        key,
        _born(values["birthDate"]),
        sex if sex in {"female", "male", "other"} else "",
        died,
        dead and died is None,
        observed,
    )


def _born(text: Any) -> date | None:
    """Return a date of birth; of a year or a month its middle."""
    if found := day_of(text):
        return found
    try:
        if isinstance(text, str) and _YEAR.match(text):
            return date(int(text[:4]), int(text[5:7]) if len(text) > 4 else 7, 15 if len(text) > 4 else 1)
    except ValueError:
        pass
    return None


def day_of(text: Any) -> date | None:
    """Return the day of a date or a time; None where it is not to the day."""
    found = _DAY.match(text) if isinstance(text, str) else None
    try:
        return date.fromisoformat(found[0]) if found else None
    except ValueError:
        return None


def begin_of(resource: Mapping[str, Any], names: Sequence[str]) -> tuple[date | None, str]:
    """Return the day of the first element that is there, or why there is none."""
    value = next((resource[name] for name in names if resource.get(name)), None)
    text = value.get("start") if isinstance(value, dict) else value
    if found := day_of(text):
        return found, ""
    is_partial = isinstance(text, str) and _YEAR.match(text)
    return None, "a date that is not to the day" if is_partial else "no date"
