"""Write a cohort as the files that a dataset is registered from.

All are readable by their owner alone. They hold times, ages and names; no dates.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from oncofed.private_files import write_private
from oncofed.records.model import Records
from oncofed.records.selection import Cohort
from oncofed.records.spec import CohortSpec, FindingsOutcome, NamedOutcome, SurvivalOutcome, ValueOutcome

OUTCOMES, TARGETS, PATIENTS, ABOUT = "outcomes.csv", "targets.yaml", "patients.csv", "cohort.json"
_PATIENT = "patient"


@dataclass(frozen=True)
class Changes:
    """What differs from the cohort that was there before.

    Attributes:
        new: patients, or examinations, that were not there.
        gone: that were.
        other: whose values differ.
    """

    new: int
    gone: int
    other: int


def write_cohort(
    cohort: Cohort, spec: CohortSpec, records: Records, folder: Path, named: Callable[[str], str] = str
) -> Changes | None:
    """Write a cohort's files.

    Args:
        cohort: to write.
        spec: its settings.
        records: from which it was selected.
        folder: for the files; those of an earlier selection are replaced.
        named: PatientID -> what the registered images call the patient; the same, unless they are de-identified.

    Returns:
        What differs from an earlier selection; None: there was none.
    """
    table = _table(cohort, named)
    before = _read_table(folder / OUTCOMES)
    changes = None if before is None else _changes(before, _parsed(table))
    write_private(folder / PATIENTS, _patients(cohort, spec).encode())
    write_private(folder / TARGETS, yaml.safe_dump(targets_of(spec), sort_keys=False, allow_unicode=True).encode())
    write_private(folder / ABOUT, (json.dumps(_about(cohort, spec, records), indent=2) + "\n").encode())
    # Last: where it stands, the others do.
    write_private(folder / OUTCOMES, table.encode())
    return changes


def targets_of(spec: CohortSpec) -> dict[str, Any]:
    """Return what ``oncofed data register --targets`` reads: which columns state what."""
    targets: dict[str, Any] = {}
    for name, outcome in spec.targets.items():
        if isinstance(outcome, SurvivalOutcome):
            columns = {"time": f"{name}_time", "event": f"{name}_event"}
            targets[name] = {"kind": "survival", **columns, "unit": outcome.unit, "one_unit": True, "decimal": "."}
        elif isinstance(outcome, FindingsOutcome):
            findings = {finding: f"{name}_{finding}" for finding in outcome.findings}
            meant = {finding: spec.concepts[concept].codes for finding, concept in outcome.findings.items()}
            targets[name] = {"kind": "labels", "findings": findings, **_codes(meant)}
        elif isinstance(outcome, NamedOutcome):
            names = {"grades": list(outcome.names)} if outcome.kind == "grade" else {"classes": list(outcome.names)}
            meant = {one: tuple(code for code, of in outcome.values.items() if of == one) for one in outcome.names}
            targets[name] = {"kind": outcome.kind, "column": name, **names, **_codes(meant)}
        elif isinstance(outcome, ValueOutcome):
            scale = {"range": list(outcome.range)} if outcome.range else {}
            code = _single(spec.concepts[outcome.concept].codes)
            coded = {"code": code} if code else {}
            targets[name] = {"kind": "value", "column": name, "unit": outcome.unit, "decimal": ".", **scale, **coded}
    return {"columns": {"patient": _PATIENT}, "targets": targets}


def _codes(meant: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the setting ``codes``: of each name that one code alone means."""
    single = {name: code for name, codes in meant.items() if (code := _single(codes))}
    counts = Counter(single.values())
    codes = {name: code for name, code in single.items() if counts[code] == 1}
    return {"codes": codes} if codes else {}


def _single(codes: Sequence[str]) -> str:
    return codes[0] if len(codes) == 1 and "*" not in codes[0] else ""


def _table(cohort: Cohort, named: Callable[[str], str]) -> str:
    """Return the table of outcomes, one row a patient."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((_PATIENT, *cohort.columns))
    written: set[str] = set()
    for row in cohort.rows:
        if row.link.patient not in written:
            written.add(row.link.patient)
            writer.writerow((named(row.link.patient), *(row.values[name] for name in cohort.columns)))
    return out.getvalue()


def _patients(cohort: Cohort, spec: CohortSpec) -> str:
    """Return the list of patients, or of their examinations, whose images are wanted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    has_numbers = bool(spec.crosswalk.accession)
    writer.writerow(("patient_id", "accession_number") if has_numbers else ("patient_id",))
    for row in cohort.rows:
        writer.writerow((row.link.patient, row.link.accession) if has_numbers else (row.link.patient,))
    return out.getvalue()


def _about(cohort: Cohort, spec: CohortSpec, records: Records) -> dict[str, Any]:
    settings = spec.model_dump_json(exclude={"omop": {"url"}, "fhir": {"folder"}})
    return {
        "cohort": spec.name,
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        "persons": cohort.flow,
        "not_used": dict(cohort.faults),
        "queries": [{"sha256": digest, "query": text} for text, digest in records.queries],
    }


def _read_table(file: Path) -> dict[str, Mapping[str, str]] | None:
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _parsed(text: str) -> dict[str, Mapping[str, str]]:
    return {row[_PATIENT]: row for row in csv.DictReader(io.StringIO(text))}


def _changes(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> Changes:
    both = before.keys() & now.keys()
    return Changes(
        len(now.keys() - before.keys()), len(before.keys() - now.keys()), sum(before[key] != now[key] for key in both)
    )
