"""Take, record and take back decisions about findings."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from oncofed.audit import AuditLog
from oncofed.data.answers import (
    ANSWERS,
    KEEP_ALL,
    KEEP_ONE,
    LEAVE_OUT,
    NOTHING_THERE,
    SET_ASIDE_KINDS,
    Answer,
    answer_to,
    kind_of_reason,
)
from oncofed.data.case_checks import Problem
from oncofed.data.case_facts import EMPTY
from oncofed.data.copies import CopyGroup, copy_groups
from oncofed.data.decisions import content_of, decided, in_force, in_words, is_unconfirmed, name_of
from oncofed.data.grouping import EXAMPLES, counted
from oncofed.data.manifest import (
    MANIFEST_FILE,
    SALT_FILE,
    Decision,
    Entry,
    Manifest,
    read_manifest,
    write_manifest,
)
from oncofed.data.quality import (
    Finding,
    copies,
    implausible_spacing,
    loose_slices,
    outliers,
    phi_warnings,
    shared_patients,
    unsettled,
    wrong_modality,
)
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError
from oncofed.processes import user_name

DECIDED, TAKEN_BACK = "data decision", "data decision taken back"


@dataclass(frozen=True)
class JobFindings:
    """Findings of a job, in addition to the dataset's.

    Attributes:
        data: its contract, for the modality; None: there is no job.
        misfits: cases that do not meet it.
    """

    data: DataSpec | None = None
    misfits: Sequence[Problem] = ()


@dataclass
class Outcome:
    """The result of deciding.

    Attributes:
        decisions: taken, or taken back.
        words: each of them in words.
        messages: contradicting labels and findings still open, for people.
        recorded: the audit log that recorded them; None: there is none here.
    """

    decisions: list[Decision] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    recorded: Path | None = None


def resolve(
    folder: Path,
    choices: Mapping[str, str],
    why: str = "",
    job: JobFindings | None = None,
    kit: Path | None = None,
    dry_run: bool = False,
    command: Callable[[Answer], str] | None = None,
) -> Outcome:
    """Decide about all present findings of some kinds.

    Args:
        folder: the dataset, registered.
        choices: finding -> action, from ``ANSWERS``.
        why: reason, for later readers.
        job: a job's findings; None: only those of the dataset.
        kit: folder of the site's kit, whose audit log records it; None: there is none.
        dry_run: change nothing.
        command: command line that answers findings still open; None: by the dataset's name.

    Raises:
        DataError: the dataset is not registered, or it has no such finding.
        AuditError: the decision cannot be recorded; then nothing is decided.
    """
    listed = _registered(folder)
    manifest = decided(listed)
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    outcome = Outcome()
    without = []
    of_copies = copy_groups(manifest) if choices.keys() & {"copies", "conflicting"} else []
    for answer in ANSWERS:
        action = choices.get(answer.finding)
        if action is None:
            continue
        if answer.finding in {"copies", "conflicting"}:
            chosen = _chosen(of_copies, answer, action, outcome.messages)
            groups = [[name_of(entry) for _, entry in group.cases] for group in chosen]
            answered = set(map(id, chosen))
            of_copies = [group for group in of_copies if id(group) not in answered]
        else:
            groups = _found(answer, manifest, job or JobFindings())
            if action == NOTHING_THERE:
                groups = _confirmable(groups, manifest, outcome.messages)
        if not groups:
            without.append(answer)
            continue
        decision = Decision(
            finding=answer.finding,
            action=action,
            groups=groups,
            content=_content(manifest, {name for group in groups for name in group}, answer.finding, action),
            who=user_name(),
            time=time,
            why=why,
        )
        outcome.decisions.append(decision)
        outcome.words += in_words(manifest.model_copy(update={"decisions": [decision]}))
        manifest = in_force(manifest.model_copy(update={"decisions": [*manifest.decisions, decision]}), decision)
    if not outcome.decisions:
        kinds = " and ".join(kind for answer in without for kind in answer.kinds)
        more = "".join(f". {line[:1].upper()}{line[1:]}" for line in outcome.messages)
        raise DataError(
            f"{folder / MANIFEST_FILE}: no finding to decide about (looked for: {kinds}). "
            f"See what there is with: oncofed data check JOB NAME{more}"
        )
    outcome.messages += [f"no {answer.kinds[0]} was found: nothing decided about it" for answer in without]
    outcome.messages += _follows(
        manifest, job or JobFindings(), command or (lambda answer: answer.command(manifest.name))
    )
    if not dry_run:
        outcome.recorded = _record(kit, DECIDED, listed.name, outcome.decisions, why)
        write_manifest(folder, listed.model_copy(update={"decisions": [*listed.decisions, *outcome.decisions]}))
    return outcome


def take_back(
    folder: Path, choices: Mapping[str, str], why: str = "", kit: Path | None = None, dry_run: bool = False
) -> Outcome:
    """Take decisions back: of ``choices``, or the last ones.

    Raises:
        DataError: the dataset is not registered, or there is no such decision.
        AuditError: this cannot be recorded; then nothing is taken back.
    """
    listed = _registered(folder)
    last = listed.decisions[-1].time if listed.decisions else ""
    gone = [d for d in listed.decisions if (choices.get(d.finding) == d.action if choices else d.time == last)]
    if not gone:
        known = "; ".join(in_words(listed)) or "none"
        raise DataError(f"{folder / MANIFEST_FILE}: no such decision to take back. Decisions: {known}")
    outcome = Outcome(gone, [f"{d.finding} {d.action}: {counted(sum(map(len, d.groups)), 'case')}" for d in gone])
    if not dry_run:
        outcome.recorded = _record(kit, TAKEN_BACK, listed.name, gone, why)
        kept = [d for d in listed.decisions if d not in gone]
        write_manifest(folder, listed.model_copy(update={"decisions": kept}))
    return outcome


def open_findings(manifest: Manifest, job: JobFindings | None = None) -> list[Finding]:
    """Return the findings that are open to a decision.

    The decisions so far are applied.
    """
    return [*copies(manifest), *_other_findings(manifest, job or JobFindings())]


def _other_findings(manifest: Manifest, job: JobFindings) -> list[Finding]:
    aside = {bad.name: bad.reason for bad in manifest.quarantine}
    aside |= {problem.case: problem.what for problem in job.misfits if problem.case not in aside}
    known = aside.keys() & {*map(name_of, manifest.entries), *(bad.name for bad in manifest.quarantine)}
    found = [
        *shared_patients(manifest),
        *wrong_modality(manifest, job.data),
        *implausible_spacing(manifest),
        *outliers(manifest),
        *loose_slices(manifest),
        *phi_warnings(manifest),
        *(Finding(kind_of_reason(aside[name]), name, aside[name]) for name in aside if name in known),
        *(
            Finding("empty label", name_of(e), EMPTY)
            for e in manifest.entries
            if is_unconfirmed(e) and name_of(e) not in aside
        ),
    ]
    return unsettled(manifest, found)


def _found(answer: Answer, manifest: Manifest, job: JobFindings) -> list[list[str]]:
    """Return the cases of each finding that a decision answers."""
    # "set-aside" drops cases whatever the reason.
    kinds = {*answer.kinds, *(SET_ASIDE_KINDS if answer.finding == "set-aside" else ())}
    return [list(f.about) for f in _other_findings(manifest, job) if f.kind in kinds]


def _confirmable(groups: list[list[str]], manifest: Manifest, messages: list[str]) -> list[list[str]]:
    """Return the groups whose empty masks may be taken for background; say of which that cannot be."""
    names = {bad.name for bad in manifest.quarantine if bad.case} | set(
        map(name_of, filter(is_unconfirmed, manifest.entries))
    )
    found = [group for group in groups if names.issuperset(group)]
    if len(found) < len(groups):
        messages.append(
            f"{counted(len(groups) - len(found), 'case')} cannot be taken for background yet: the dataset was "
            "registered by an earlier version, or the mask is drawn on a slide. Register the folder again"
        )
    return found


def _content(manifest: Manifest, names: set[str], finding: str, action: str) -> dict[str, str]:
    """Return the state of each case.

    A fingerprint of its image, or the reason for setting it aside.
    """
    content = {name_of(e): content_of(e, finding) for e in manifest.entries if name_of(e) in names}
    return content | {
        bad.name: content_of(bad.case, finding) if bad.case and action == NOTHING_THERE else bad.reason
        for bad in manifest.quarantine
        if bad.name in names
    }


def _chosen(groups: Sequence[CopyGroup], answer: Answer, action: str, more: list[str]) -> list[CopyGroup]:
    contradicting = [group for group in groups if group.contradiction()]
    if answer.finding == "conflicting":
        return contradicting
    if action == KEEP_ALL:
        same = [group for group in groups if any(copy.correlation is None for copy in group.copies[1:])]
        if same:
            more.append(
                f"{len(same):,} groups hold the same file twice, which cannot be different images; they are found still"
            )
        return [group for group in groups if not group.exact]
    if contradicting:
        pairs = [group.contradiction() or () for group in contradicting[:EXAMPLES]]
        named = "; ".join(" and ".join(f"{name_of(e)} ({_label(e)})" for e in pair) for pair in pairs)
        more.append(
            f"the labels of {len(contradicting):,} groups of copies contradict: {named}"
            f"{' …' if len(contradicting) > EXAMPLES else ''}. Leave those images out with --conflicting {LEAVE_OUT}"
            + (", or mend the wrong label; they are found still" if action == KEEP_ONE else "")
        )
    # No rule can decide which of two labels is right.
    return [group for group in groups if action != KEEP_ONE or not group.contradiction()]


def _label(entry: Entry) -> str:
    if isinstance(entry.label, int):
        return f"class {entry.label}"
    counts = (f"{count:,} of {value}" for value, count in (entry.label_values or {}).items() if value != "0")
    return f"voxels {', '.join(counts) or 'of no label'}"


def _follows(manifest: Manifest, job: JobFindings, command: Callable[[Answer], str]) -> list[str]:
    """Return open findings by kind, without searching copies again."""
    counts: dict[str, int] = {}
    for finding in _other_findings(manifest, job):
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return [
        f"still open: {kind}, {count:,}" + (f": {command(answer)}" if (answer := answer_to(kind)) else "")
        for kind, count in counts.items()
    ]


def _record(kit: Path | None, what: str, dataset: str, decisions: Sequence[Decision], why: str) -> Path | None:
    if kit is None:
        return None
    log = AuditLog(kit)
    for decision in decisions:
        log.write(
            what,
            dataset=dataset,
            finding=decision.finding,
            action=decision.action,
            cases=sum(map(len, decision.groups)),
            decision=hashlib.sha256(decision.model_dump_json().encode()).hexdigest(),
            reason=why,
        )
    return log.path


def _registered(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if not (folder / SALT_FILE).is_file() and not any(entry.checksum for entry in manifest.entries):
        raise DataError(
            f"{folder}: nobody registered it, and decisions are kept where it is registered. "
            f"Register it with: oncofed data register {shlex.quote(str(folder))} --dataset NAME"
        )
    return manifest
