"""Check a dataset against a job's contract."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from oncofed.data import case_facts
from oncofed.data.case_checks import Problem, channels_fit, check_cases, contract_faults
from oncofed.data.cases import by_patient, read_cases
from oncofed.data.covariate_report import CovariateReport, columns_used, covariate_reports, covariate_warnings
from oncofed.data.decisions import decided, in_words, is_labelled, name_of
from oncofed.data.feature_report import WantedFeatures, misfits, summarise
from oncofed.data.grouping import counted, millimetres
from oncofed.data.images import stem
from oncofed.data.label_mapping import IGNORED, Supervision, Vocabulary, looked_for, match
from oncofed.data.leaks import outcome_columns
from oncofed.data.manifest import SPLITS, Entry, Manifest, inside, read_manifest
from oncofed.data.masks import value_name
from oncofed.data.mixtures import mixtures
from oncofed.data.quality import Finding, find_all, loose_slices, phi_warnings, unsettled
from oncofed.data.slides.tile_quality import quality_remarks
from oncofed.data.spec import MODALITY_NAMES, DataSpec
from oncofed.data.target_report import TargetReport, report_target
from oncofed.data.targets import Target, declared_target
from oncofed.data.time_order import earlier_tests
from oncofed.errors import DataError

_MOST_VALUES = 8
_BELOW = "see below"
_ONE = {2: "flat image", 3: "volume"}
_NO_LABEL = "its entry names no label"
Verdict = Literal["fits", "converted", "does not fit"]


@dataclass(frozen=True)
class Row:
    """One aspect of a dataset, as found and as expected."""

    aspect: str
    found: str
    expected: str
    verdict: Verdict
    how: str = ""


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
    report.rows = [_modality(manifest, data), *_rows(manifest, data, wanted, vocabulary, report)]
    report.rows += _features(_used_entries(manifest, data), features) if features else []
    report.findings = find_all(manifest, data)
    leaks = _leaks(manifest, data, wanted, report)
    report.findings += [leak for leak in leaks if leak.severe]
    report.warnings += [leak for leak in leaks if not leak.severe]
    mixed = (Finding(kind, None, what, severe=False) for kind, what in mixtures(manifest))
    report.warnings += unsettled(manifest, (*loose_slices(manifest), *mixed, *phi_warnings(manifest)))
    entries = _used_entries(manifest, data)
    covariates = covariate_reports(entries, data.covariates)
    report.rows += [_covariate(found) for found in covariates]
    report.warnings += covariate_warnings(entries, covariates)
    looked_at = [entry.tile_quality for entry in entries if entry.tile_quality]
    report.remarks = [*manifest.remarks, *quality_remarks(looked_at)]
    report.unlabelled = [
        Problem(name_of(entry), entry.unlabelled or _NO_LABEL) for entry in manifest.entries if not is_labelled(entry)
    ]
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
        + (f" ({row.how})" if row.how not in {"", _BELOW} else "")
        for row in report.rows
        if row.verdict == "does not fit"
    ]
    report.why_not += [f"labels: {problem}" for problem in vocabulary.problems]
    if wanted.kind == "mask" and not vocabulary.problems:
        report.rows = [_with_values(row, manifest, wanted.classes, vocabulary) for row in report.rows]
    if odd:
        report.why_not.append(f"{counted(len(odd), 'case')} with findings")
    report.may_train = not report.why_not
    return report


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
    found = [leak for leak in _leaks(manifest, data, wanted, report) if leak.severe] + report.warnings
    try:
        dealt = read_cases(folder, data.split, seed, wanted, data.splits)
    except DataError:  # the sites refuse it in words
        return found
    return found + unsettled(manifest, earlier_tests(dealt))


def _leaks(manifest: Manifest, data: DataSpec, wanted: Supervision, report: Report) -> list[Finding]:
    """Return the columns that tell an outcome, of targets that are in the report."""
    of_kind = {found.name for found in report.targets}
    used = columns_used(manifest.entries, data.covariates)
    return unsettled(manifest, outcome_columns(manifest, [t for t in wanted.targets if t.name in of_kind], used))


def _used_entries(manifest: Manifest, data: DataSpec) -> list[Entry]:
    """Return the entries in lists that the job uses."""
    return [entry for split, entry in manifest.by_split() if split in data.splits]


def _deal(report: Report, folder: Path, data: DataSpec, wanted: Supervision, seed: int) -> None:
    """Report usable cases and their split, where labels fit."""
    try:
        cases = read_cases(folder, data.split, seed, wanted, data.splits)
        report.set_aside += check_cases(cases, list(wanted.classes), data)
        usable = cases.without({p.case for p in report.set_aside})
        if wanted.whole_patients:
            usable, differing = by_patient(usable, data, wanted)
            report.set_aside += differing
        report.cases = {
            "training": len(usable.train),
            "validation": len(usable.validation),
            "test": len(usable.test),
        }
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


def _covariate(found: CovariateReport) -> Row:
    """Return a covariate's row; where nobody has it, the network is told that it is missing."""
    how = "missing everywhere" if found.is_missing else ""
    return Row(found.column.name, found.found, found.expected, "converted" if how else "fits", how)


def _features(entries: Sequence[Entry], wanted: WantedFeatures) -> list[Row]:
    found = summarise(entries)
    if not found:
        return []
    how = found.differ or misfits(entries, wanted)
    return [Row("features", found.found, f"of {wanted.encoder}", "does not fit" if how else "fits", how)]


def _modality(manifest: Manifest, data: DataSpec) -> Row:
    names = {entry.modality for entry in manifest.entries if entry.modality} or set(manifest.modality.values())
    found = ", ".join(sorted(names)) or "not known"
    words = set(re.split(r"[^a-z-]+", found.lower()))
    everything = {word for allowed in MODALITY_NAMES.values() for word in allowed}
    fits = bool(words & set(MODALITY_NAMES[data.modality])) or not words & everything
    return Row("modality", found, data.modality, "fits" if fits else "does not fit")


def _rows(manifest: Manifest, data: DataSpec, wanted: Supervision, vocabulary: Vocabulary, report: Report) -> list[Row]:
    entries = _used_entries(manifest, data)
    known = [entry for entry in entries if entry.shape]
    if wanted.kind == "targets":
        rows = _target_rows(manifest, wanted.targets, entries, report)
    else:
        rows = _label_rows(manifest, data, wanted, vocabulary, entries)
    if not known:
        return rows
    return [_dimensions(known, data), _channels(known, data), _spacing(known, data), _orientation(known, data), *rows]


def _label_rows(
    manifest: Manifest, data: DataSpec, wanted: Supervision, vocabulary: Vocabulary, entries: Sequence[Entry]
) -> list[Row]:
    """Return the rows on masks, classes or boxes."""
    word = {"mask": "a mask", "class": "a class", "boxes": "boxes or a mask"}[wanted.kind]
    labelled = [entry for entry in entries if wanted.of_entry(manifest, entry)]
    return [
        _labels(manifest, wanted, vocabulary),
        Row(
            "cases",
            f"{len(labelled)} with {word} of {len(entries)}",
            f"at least {data.minimum_cases}",
            "fits" if len(labelled) >= data.minimum_cases else "does not fit",
        ),
        *(_looked_for(manifest, wanted, vocabulary, labelled) if wanted.partial and not vocabulary.problems else ()),
    ]


def _looked_for(
    manifest: Manifest, wanted: Supervision, vocabulary: Vocabulary, labelled: Sequence[Entry]
) -> Iterator[Row]:
    """Yield each class's row: patients in whom it was looked for."""
    patients: dict[int, set[str]] = {value: set() for value, name in wanted.classes.items() if name != IGNORED}
    for entry in labelled:
        try:
            known = looked_for(manifest, entry, wanted, vocabulary)
        except DataError:  # which sets the case aside, with this reason
            continue
        for value in patients if known is None else known:
            patients[value].add(entry.patient or name_of(entry))
    everyone = len({entry.patient or name_of(entry) for entry in labelled})
    for value, having in patients.items():
        found = f"looked for in {len(having)} of {everyone} patients"
        how = "unknown in the others" if len(having) < everyone else ""
        yield Row(f"{wanted.classes[value]} ({value})", found, "any number", "converted" if how else "fits", how)


def _target_rows(manifest: Manifest, targets: Sequence[Target], entries: Sequence[Entry], report: Report) -> list[Row]:
    """Return a row per target; its distribution and its warnings go into the report.

    A site needs one of the job's targets: what it lacks counts in neither loss nor score.
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
    if any(found.patients for found in report.targets):
        return rows
    return [replace(row, verdict="does not fit", how=row.how or "no patient has it") for row in rows]


def _dimensions(entries: Sequence[Entry], data: DataSpec) -> Row:
    counts = Counter(len(entry.shape or []) for entry in entries)
    words = {2: "flat images", 3: "volumes"}
    found = ", ".join(
        f"{n} {words.get(d, f'of {d} axes') if n > 1 else _ONE.get(d, f'of {d} axes')}" for d, n in counts.most_common()
    )
    sizes = [side for entry in entries for side in entry.shape or []]
    expected = words[data.dimensions]
    if data.size_range:
        expected += f", {data.size_range[0]} to {data.size_range[1]} a side"
    faulty = [entry for entry in entries if _faults(entry, data, "voxels, expected", "flat", "volume")]
    how = _named(faulty)
    small = sum(min(entry.shape or [0]) < min(data.patch) for entry in entries)
    if not how and small:
        return Row(
            "size",
            f"{found}, {_range(sizes)} a side",
            expected,
            "converted",
            f"{small} padded to the patch",
        )
    return Row("size", f"{found}, {_range(sizes)} a side", expected, "does not fit" if how else "fits", how)


def _channels(entries: Sequence[Entry], data: DataSpec) -> Row:
    counts = Counter(entry.channels or 1 for entry in entries)
    found = ", ".join(f"{c} ({counted(n, 'case')})" for c, n in counts.most_common())
    expected = f"{len(data.channels)} ({', '.join(data.channels)})"
    bad = [entry for entry in entries if not channels_fit(entry.channels or 1, data)]
    if bad:
        return Row("channels", found, expected, "does not fit", _named(bad))
    if any((entry.channels or 1) != len(data.channels) for entry in entries):
        how = "grey becomes colour" if len(data.channels) == 3 else "colour becomes grey"
        return Row("channels", found, expected, "converted", how)
    return Row("channels", found, expected, "fits")


def _spacing(entries: Sequence[Entry], data: DataSpec) -> Row:
    sides = [side for entry in entries for side in entry.spacing or []]
    found = f"{_range(sides, millimetres)} mm" if sides else "not known"
    expected = " x ".join(f"{s:g}" for s in data.spacing) + " mm" if data.spacing else "each image's own"
    if data.spacing_range:
        expected += f", from {data.spacing_range[0]:g} to {data.spacing_range[1]:g} mm"
    bad = [entry for entry in entries if _faults(entry, data, "mm", "pixels are")]
    if bad:
        return Row("spacing", found, expected, "does not fit", _named(bad))
    target = list(data.spacing or ())
    others = [
        e
        for e in entries
        if data.spacing and any(abs(a - b) > 1e-3 * min(1.0, b) for a, b in zip(e.spacing or [], target, strict=False))
    ]
    if others:
        return Row("spacing", found, expected, "converted", f"{counted(len(others), 'case')} resampled")
    return Row("spacing", found, expected, "fits")


def _orientation(entries: Sequence[Entry], data: DataSpec) -> Row:
    counts = Counter(entry.orientation or ("not known" if len(entry.shape or []) == 3 else "flat") for entry in entries)
    found = ", ".join(f"{name} ({n})" for name, n in counts.most_common(4))
    if data.dimensions == 2:
        return Row("orientation", found, "flat", "fits")
    others = sum(n for name, n in counts.items() if name not in {data.orientation, "not known"})
    if others:
        return Row("orientation", found, data.orientation, "converted", f"{counted(others, 'case')} reoriented")
    return Row("orientation", found, data.orientation, "fits")


def _labels(manifest: Manifest, wanted: Supervision, vocabulary: Vocabulary) -> Row:
    shown = {v: n for v, n in manifest.labels.items() if wanted.kind == "class" or int(float(v)) != 0}
    found = ", ".join(f"{v} {n}" if n != v else v for v, n in shown.items()) or "without names"
    expected = ", ".join(f"{value} {name}" for value, name in wanted.classes.items())
    if vocabulary.problems:
        return Row("labels", found, expected, "does not fit", _BELOW)
    if vocabulary.how:
        return Row("labels", found, expected, "converted", "; ".join(vocabulary.how))
    return Row("labels", found, expected, "fits")


def _with_values(row: Row, manifest: Manifest, classes: Mapping[int, str], vocabulary: Vocabulary) -> Row:
    """Return the row of labels, with unknown values."""
    if row.aspect != "labels" or manifest.label_kind == "instances":
        return row
    known = {0, *(classes if vocabulary.values is None else vocabulary.values)}
    held = Counter(
        v for e in manifest.entries if isinstance(e.label, str) for v in case_facts.label_counts(e.label_values or {})
    )
    outside = sorted(held.keys() - known)
    if not outside:
        return row
    names = {value: classes.get(value, "NAME") for value in sorted(held.keys() - {0})}
    listed = ", ".join(f"{value_name(value)} in {counted(held[value], 'case')}" for value in outside[:_MOST_VALUES])
    more = f" and {len(outside) - _MOST_VALUES} more" if len(outside) > _MOST_VALUES else ""
    how = f"{listed}{more}: none of the job's"
    if len(names) <= _MOST_VALUES:
        option = ",".join(f"{value_name(value)}={name}" for value, name in names.items())
        how += f"; register again with --labels {option} (background: none of them)"
    return replace(row, verdict="does not fit", how="; ".join(filter(None, (row.how, how))))


def _faults(entry: Entry, data: DataSpec, *words: str) -> list[str]:
    return [fault for fault in contract_faults(entry, data) if any(word in fault for word in words)]


def _range(values: Sequence[float], written: Callable[[float], str] = str) -> str:
    low, high = written(min(values)), written(max(values))
    return low if low == high else f"{low} to {high}"


def _named(entries: Sequence[Entry]) -> str:
    names = [entry.name or entry.images[0] for entry in entries]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
