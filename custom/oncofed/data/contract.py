"""Check a dataset against a job's contract."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oncofed.data import case_facts
from oncofed.data.case_checks import Problem, check_cases
from oncofed.data.cases import by_patient, read_cases, used_cases
from oncofed.data.contract_rows import (
    BELOW,
    Row,
    covariate_row,
    feature_rows,
    image_rows,
    label_rows,
    mask_rows,
    modality_row,
    with_values,
)
from oncofed.data.covariate_report import columns_used, covariate_reports, covariate_warnings
from oncofed.data.decisions import decided, in_words, is_labelled, name_of
from oncofed.data.feature_report import WantedFeatures
from oncofed.data.grouping import counted
from oncofed.data.images import stem
from oncofed.data.label_mapping import Supervision, Vocabulary, match
from oncofed.data.leaks import outcome_columns
from oncofed.data.manifest import SPLITS, Entry, Manifest, inside, read_manifest
from oncofed.data.mixtures import mixtures
from oncofed.data.quality import Finding, find_all, loose_slices, phi_warnings, unsettled
from oncofed.data.slides.tile_quality import quality_remarks
from oncofed.data.spec import DataSpec
from oncofed.data.target_report import TargetReport, report_target
from oncofed.data.targets import Target, declared_target
from oncofed.data.time_order import OF_OUTCOME, earlier_tests, outcomes_by_date
from oncofed.errors import DataError

# Kind of finding: a target, of a case that is used without it.
UNKNOWN = "left unknown"
_NO_LABEL = "its entry names no label"


@dataclass
class Report:
    """The result of checking a dataset against a job.

    Attributes:
        rows: by aspect.
        findings: over all cases, by name.
        set_aside: cases that cannot be used, as found now or when registering.
        unlabelled: usable cases without a label, and why they have none.
        remarks: observations on the whole folder, from registering.
        decided: people's decisions about findings, in words.
        targets: of a job that learns targets: patients and distribution of each.
        cases: number of usable cases by list.
        training_patients: of the usable training cases; None: no cases were dealt.
        may_train: the job would start here.
        why_not: the reason if not.
    """

    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    set_aside: list[Problem] = field(default_factory=list)
    unlabelled: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)
    targets: list[TargetReport] = field(default_factory=list)
    cases: dict[str, int] = field(default_factory=dict)
    training_patients: int | None = None
    may_train: bool = True
    why_not: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """No finding needs a person to fix it."""
        return self.may_train and not self.findings and not self.set_aside


def check_dataset(
    folder: Path, data: DataSpec, wanted: Supervision, seed: int, features: WantedFeatures | None = None
) -> Report:
    """Compare a dataset with a job's contract.

    Args:
        folder: the dataset.
        data: the contract.
        wanted: what the job learns from.
        seed: of the split into training, validation and test.
        features: of slides that the job takes; None: it reads images.

    Raises:
        DataError: there is no dataset in ``folder``.
    """
    listed = read_manifest(folder)
    manifest = with_facts(folder, decided(listed))
    vocabulary = match(manifest, wanted)
    report = Report()
    report.rows = [modality_row(manifest, data), *_rows(manifest, data, wanted, vocabulary, report)]
    report.rows += feature_rows(_used_entries(manifest, data), features) if features else []
    report.findings = find_all(manifest, data)
    leaks = _leaks(manifest, data, wanted, report)
    report.findings += [leak for leak in leaks if leak.severe]
    report.warnings += [leak for leak in leaks if not leak.severe]
    mixed = (Finding(kind, None, what, severe=False) for kind, what in mixtures(manifest))
    report.warnings += unsettled(manifest, (*loose_slices(manifest), *mixed, *phi_warnings(manifest)))
    entries = _used_entries(manifest, data)
    covariates = covariate_reports(entries, data.covariates)
    report.rows += [covariate_row(found) for found in covariates]
    report.warnings += covariate_warnings(entries, covariates)
    looked_at = [entry.tile_quality for entry in entries if entry.tile_quality]
    report.warnings += left_unknown(entries, [target.name for target in wanted.targets])
    report.remarks = [*manifest.remarks, *quality_remarks(looked_at)]
    if wanted.kind != "none":
        lacking = [entry for entry in manifest.entries if not is_labelled(entry)]
        report.unlabelled = [Problem(name_of(entry), entry.unlabelled or _NO_LABEL) for entry in lacking]
    report.decided = in_words(listed)
    report.set_aside = [Problem(q.name, q.reason) for q in manifest.quarantine]
    odd = {name for finding in report.findings for name in finding.about}
    if not vocabulary.problems:
        _deal(report, folder, data, wanted, seed)
    total = len(manifest.entries) + len(manifest.quarantine)
    share = len(report.set_aside) / max(total, 1)
    if share > data.max_bad_share:
        report.why_not.append(
            f"{len(report.set_aside)} of {total} cases are set aside ({share:.0%}), more than {data.max_bad_share:.0%}"
        )
    left = sum(report.cases.values())
    if report.cases and left < data.minimum_cases:
        report.why_not.append(f"{counted(left, 'usable case')}, the job asks for at least {data.minimum_cases}")
    report.why_not += [
        f"{row.aspect}: found {row.found}, expected {row.expected}"
        + (f" ({row.how})" if row.how not in {"", BELOW} else "")
        for row in report.rows
        if row.verdict == "does not fit"
    ]
    report.why_not += [f"labels: {problem}" for problem in vocabulary.problems]
    if wanted.kind in ("mask", "targets") and not vocabulary.problems:
        report.rows = [with_values(row, manifest, wanted.classes, vocabulary) for row in report.rows]
    if odd:
        report.why_not.append(f"{counted(len(odd), 'case')} with findings")
    report.may_train = not report.why_not
    return report


def left_unknown(entries: Sequence[Entry], targets: Sequence[str]) -> list[Finding]:
    """Return the cells of a job's targets that cannot be used, of cases that are used without."""
    return [
        Finding(UNKNOWN, name_of(entry), why, severe=False)
        for entry in entries
        for name, why in entry.unread.items()
        if name in {"", *targets}
    ]


def doubts(folder: Path, data: DataSpec, wanted: Supervision, seed: int) -> list[Finding]:
    """Return what a person should know of a job's lists and targets before it trains.

    Test patients from before training ones, severe findings on columns that tell an outcome, and warnings of targets.
    No image is read.

    Args:
        folder: the dataset.
        data: the job's contract.
        wanted: what the job learns from.
        seed: of the split into training, validation and test.
    """
    manifest, report = decided(read_manifest(folder)), Report()
    _target_rows(manifest, wanted.targets, _used_entries(manifest, data), report)
    leaks = _leaks(manifest, data, wanted, report)
    found = [leak for leak in leaks if leak.severe or leak.kind == OF_OUTCOME] + report.warnings
    try:
        dealt = read_cases(folder, data.split, seed, wanted, data.splits)
    except DataError:  # the sites refuse it in words
        return found
    return found + unsettled(manifest, earlier_tests(dealt))


def _leaks(manifest: Manifest, data: DataSpec, wanted: Supervision, report: Report) -> list[Finding]:
    """Return the columns and dates that tell an outcome, of targets that are in the report."""
    of_kind = {found.name for found in report.targets}
    targets = [target for target in wanted.targets if target.name in of_kind]
    used = columns_used(manifest.entries, data.covariates)
    return unsettled(manifest, (*outcome_columns(manifest, targets, used), *outcomes_by_date(manifest, targets)))


def _used_entries(manifest: Manifest, data: DataSpec) -> list[Entry]:
    """Return the entries in lists that the job uses."""
    return [entry for split, entry in manifest.by_split() if split in data.splits]


def _deal(report: Report, folder: Path, data: DataSpec, wanted: Supervision, seed: int) -> None:
    """Report usable cases and their split, where labels fit."""
    try:
        cases = read_cases(folder, data.split, seed, wanted, data.splits)
        problems = check_cases(cases, list(wanted.classes), data)
        usable = used_cases(cases, [*report.set_aside, *problems])
        report.set_aside += [found for found in problems if not found.of_mask]
        report.warnings += [Finding("mask left out", p.case, p.what, severe=False) for p in problems if p.of_mask]
        if wanted.whole_patients:
            usable, differing = by_patient(usable, data, wanted)
            report.set_aside += differing
        report.cases = {
            "training": len(usable.train),
            "validation": len(usable.validation),
            "test": len(usable.test),
        }
        report.training_patients = len({case.patient for case in usable.train})
        report.warnings += unsettled(decided(read_manifest(folder)), earlier_tests(usable))
        usable.require_training(folder.name)
    except DataError as error:
        report.why_not.append(str(error).removeprefix(f"{folder / 'dataset.json'}: "))


def with_facts(folder: Path, manifest: Manifest) -> Manifest:
    """Return a manifest with each case's facts.

    Cases that were not registered are read now; no decision is applied.
    """

    def known(entry: Entry | str) -> Entry | str:
        if isinstance(entry, str) or entry.shape or not (isinstance(entry.label, str) or entry.boxes is not None):
            return entry
        images = [inside(folder, image) for image in entry.images]
        name = entry.name or stem(images[0])
        by_colour, named = manifest.reading(entry)
        try:
            mask = inside(folder, entry.label) if isinstance(entry.label, str) else None
            image, label = case_facts.read_case(images, mask, by_colour, named)
            found = {**case_facts.measure(image, label), "label_named": list(named) or None}
            found["checksum"] = case_facts.checksum(images)
            found["notes"] = case_facts.notes(image, label)
        except (DataError, OSError):
            return entry.model_copy(update={"name": name})
        return entry.model_copy(update={**found, "name": name, "patient": entry.patient or name})

    with ThreadPoolExecutor(4) as pool:
        lists: dict[str, Any] = {split: list(pool.map(known, getattr(manifest, split))) for split in SPLITS}
    return manifest.model_copy(update=lists)


def _rows(manifest: Manifest, data: DataSpec, wanted: Supervision, vocabulary: Vocabulary, report: Report) -> list[Row]:
    entries = _used_entries(manifest, data)
    known = [entry for entry in entries if entry.shape]
    if wanted.kind == "none":
        rows = []
    elif wanted.kind == "targets":
        masked = any(map(wanted.has_mask, entries))
        rows = _target_rows(manifest, wanted.targets, entries, report, needed=not masked)
        rows += mask_rows(manifest, wanted, vocabulary, entries) if wanted.classes else []
    else:
        rows = label_rows(manifest, data, wanted, vocabulary, entries)
    if not known:
        return rows
    return [*image_rows(known, data), *rows]


def _target_rows(
    manifest: Manifest, targets: Sequence[Target], entries: Sequence[Entry], report: Report, needed: bool = True
) -> list[Row]:
    """Return a row per target; its distribution and its warnings go into the report.

    A site needs one of the job's targets, or has masks beside them: what it lacks counts in neither loss nor score.
    """
    rows = []
    for target in targets:
        expected = f"a target of kind {target.kind}"
        try:
            declared = declared_target(manifest.targets, manifest.labels, target)
        except DataError as error:
            rows.append(Row(target.name, "another kind", expected, "does not fit", str(error)))
            continue
        found = report_target(manifest, target, declared, entries)
        report.targets.append(found)
        report.warnings += [Finding("target", None, f"{target.name}: {what}", severe=False) for what in found.warnings]
        rows.append(Row(target.name, str(found), expected, "fits"))
    if not needed or any(found.patients for found in report.targets):
        return rows
    return [replace(row, verdict="does not fit", how=row.how or "no patient has it") for row in rows]
