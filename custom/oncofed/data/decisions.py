"""Apply people's decisions about findings to a dataset.

The entries stay in ``dataset.json``: they are left out, or joined to one patient, each time that it is read. A decision
holds for its cases as they were then; cases whose image has changed since, and new ones, are reported again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from oncofed.data.answers import KEEP_IN_TEST, KEEP_ONE, LEAVE_OUT, MOVE_TO_TRAINING, NOTHING_THERE, SAME_PATIENT
from oncofed.data.case_facts import is_empty
from oncofed.data.grouping import counted
from oncofed.data.manifest import SPLITS, Decision, Entry, Manifest, Quarantined, Split

_CONTENT_LETTERS = 16
# Lists by the worth of their images: results on a changed test list cannot be compared with earlier ones.
_BY_WORTH: tuple[Split, ...] = ("test", "validation", "training")


def decided(manifest: Manifest) -> Manifest:
    """Return a dataset with its decisions applied; idempotent."""
    for decision in manifest.decisions:
        manifest = in_force(manifest, decision)
    return manifest


def in_force(manifest: Manifest, decision: Decision) -> Manifest:
    """Return a dataset with one decision applied.

    Copies whose labels contradict each other, now or at the time of the decision, are never dropped as mere copies.
    """
    names = {name for group in decision.groups for name in group}
    aside = [bad for bad in manifest.quarantine if bad.name in names and _is_decided(decision, bad)]
    if aside:
        left = [bad for bad in manifest.quarantine if bad not in aside]
        manifest = manifest.model_copy(update={"quarantine": left})
    if decision.action == NOTHING_THERE:
        manifest = _with_cases(manifest, [bad.case for bad in aside if bad.case])
    effect = _EFFECTS.get(decision.action)
    if effect is None:
        return manifest
    present = {name_of(entry): (split, entry) for split, entry in manifest.by_split()}
    groups = [group for group in _still_so(decision, present) if group]
    if decision.finding == "copies" and decision.action == KEEP_ONE:
        groups = [group for group in groups if not contradiction(entry for _, entry in group)]
    return effect(manifest, groups)


def contradiction(copies: Iterable[Entry]) -> tuple[Entry, Entry] | None:
    """Return two copies with different labels, if any."""
    labelled = [entry for entry in copies if is_labelled(entry)]
    return next(((labelled[0], other) for other in labelled[1:] if _differ(labelled[0], other)), None)


def in_words(manifest: Manifest) -> list[str]:
    """Return a description of each decision and its effect."""
    words = []
    for decision in manifest.decisions:
        after = in_force(manifest, decision)
        out = _count(manifest) - _count(after)
        fewer = len({_patient(e) for e in manifest.entries}) - len({_patient(e) for e in after.entries})
        cases = counted(sum(map(len, decision.groups)), "case")
        come = [f"{out:,} left out"] if out else []
        if decision.action == SAME_PATIENT:
            come = [f"{counted(fewer, 'patient')} joined to others"]
        text = f"{decision.finding} {decision.action}: {', '.join([cases, *come])}"
        text += f"; {decision.who}, {decision.time[:10]}"
        words.append(f"{text}: {decision.why}" if decision.why else text)
        manifest = after
    return words


def settled(manifest: Manifest, finding: str, actions: Iterable[str] | None = None) -> dict[str, int]:
    """Return case -> number of its decided group.

    Args:
        manifest: the dataset.
        finding: that the decisions answer.
        actions: of those decisions; None: any.
    """
    decisions = [d for d in manifest.decisions if d.finding == finding and (actions is None or d.action in actions)]
    present = {name_of(entry): (split, entry) for split, entry in manifest.by_split()} if decisions else {}
    numbers: dict[str, int] = {}
    for decision in decisions:
        for group in _still_so(decision, present):
            known = {numbers[name_of(e)] for _, e in group if name_of(e) in numbers}
            number = min(known, default=len(numbers) + 1)
            if len(known) > 1:
                numbers = {name: number if n in known else n for name, n in numbers.items()}
            numbers |= {name_of(entry): number for _, entry in group}
    return numbers


def name_of(entry: Entry) -> str:
    """Return a case's name, or its image's."""
    return entry.name or entry.images[0]


def is_labelled(entry: Entry) -> bool:
    """Return whether a case has a label, or states a target or boxes."""
    return entry.label is not None or bool(entry.targets) or entry.boxes is not None


def content_of(entry: Entry, finding: str) -> str:
    """Return a fingerprint of a case for a finding.

    It changes with the image, or with the label where the finding is about labels.
    """
    image = (entry.checksum or entry.stamp or "")[:_CONTENT_LETTERS]
    if finding != "conflicting":
        return image
    label = entry.label if isinstance(entry.label, int) else sorted((entry.label_values or {}).items())
    return f"{image} {label}" + (f" {sorted(entry.targets.items())}" if entry.targets else "")


def is_unconfirmed(entry: Entry) -> bool:
    """Return whether a case's mask is empty, and nobody has said that this is right."""
    return is_empty(entry) and not entry.label_problem and not entry.nothing_there and not entry.tiles


def by_worth(cases: Iterable[tuple[Split, Entry]]) -> list[tuple[Split, Entry]]:
    """Return cases, the one to keep first.

    Labelled ones first, then those of the test list, else in the given order.
    """
    return sorted(cases, key=lambda case: (not is_labelled(case[1]), _BY_WORTH.index(case[0])))


_Group = list[tuple[Split, Entry]]


def _differ(first: Entry, second: Entry) -> bool:
    """Return whether the labels or targets of two copies contradict."""
    if any(first.targets[name] != second.targets[name] for name in first.targets.keys() & second.targets.keys()):
        return True
    if isinstance(first.label, int) or isinstance(second.label, int):
        return first.label != second.label and isinstance(first.label, int) and isinstance(second.label, int)
    if first.label_values is None or second.label_values is None:
        return False
    if first.shape == second.shape:
        # On one grid a mirrored or moved mask has the same counts of voxels, so digests are compared.
        moved = first.affine == second.affine and None not in (first.label_digest, second.label_digest)
        return first.label_values != second.label_values or (moved and first.label_digest != second.label_digest)
    return set(first.label_values) - {"0"} != set(second.label_values) - {"0"}


def _still_so(decision: Decision, present: dict[str, tuple[Split, Entry]]) -> Iterator[_Group]:
    """Yield each group's cases that are unchanged."""
    for group in decision.groups:
        still = [
            present[name]
            for name in group
            if name in present and decision.content.get(name) == content_of(present[name][1], decision.finding)
        ]
        # Once a contradicting label is gone or changed, the others may no longer contradict each other.
        yield [] if decision.finding == "conflicting" and len(still) < len(group) else still


def _leave_out(manifest: Manifest, groups: list[_Group]) -> Manifest:
    return _without(manifest, {name_of(entry) for group in groups for _, entry in group})


def _keep_one(manifest: Manifest, groups: list[_Group]) -> Manifest:
    return _without(manifest, {name_of(entry) for group in groups for _, entry in by_worth(group)[1:]})


def _join(manifest: Manifest, groups: list[_Group]) -> Manifest:
    """Merge the patients of each group."""
    joined: dict[str, str] = {}

    def key(patient: str) -> str:
        while joined.get(patient, patient) != patient:
            joined[patient] = joined.get(joined[patient], joined[patient])
            patient = joined[patient]
        return patient

    for group in groups:
        first, *others = sorted({key(_patient(entry)) for _, entry in group})
        joined |= dict.fromkeys(others, first)

    def change(split: Split, entry: Entry) -> Entry:
        patient = key(_patient(entry))
        return entry if patient == _patient(entry) else entry.model_copy(update={"patient": patient})

    return _changed(manifest, change)


def _move_to_training(manifest: Manifest, groups: list[_Group]) -> Manifest:
    patients = {_patient(entry) for group in groups for _, entry in group}
    lists: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for entry in getattr(manifest, split):
            moves = isinstance(entry, Entry) and _patient(entry) in patients
            lists["training" if moves else split].append(entry)
    return manifest.model_copy(update=lists)


def _keep_in_test(manifest: Manifest, groups: list[_Group]) -> Manifest:
    """Keep a patient's images in the most valuable list only."""
    patients = {_patient(entry) for group in groups for _, entry in group}
    lists: dict[str, set[Split]] = {}
    for split, entry in manifest.by_split():
        lists.setdefault(_patient(entry), set()).add(split)
    kept = {patient: min(lists[patient], key=_BY_WORTH.index) for patient in patients if patient in lists}
    return _without(manifest, {name_of(e) for split, e in manifest.by_split() if kept.get(_patient(e), split) != split})


def _nothing_there(manifest: Manifest, groups: list[_Group]) -> Manifest:
    """Take empty masks for background."""
    names = {name_of(entry) for group in groups for _, entry in group if is_unconfirmed(entry)}
    return _changed(manifest, lambda _, e: e.model_copy(update={"nothing_there": True}) if name_of(e) in names else e)


def _is_decided(decision: Decision, bad: Quarantined) -> bool:
    """Return whether a decision holds for a case that was set aside."""
    stated = decision.content.get(bad.name)
    if decision.action == NOTHING_THERE:
        return bad.case is not None and stated == content_of(bad.case, decision.finding)
    return stated == bad.reason


def _with_cases(manifest: Manifest, cases: list[Entry]) -> Manifest:
    """Return a dataset with further cases in their lists."""
    lists: dict[str, list[Any]] = {split: list(getattr(manifest, split)) for split in SPLITS}
    for case in cases:
        lists[case.split or "training"].append(case)
    return manifest.model_copy(update=lists) if cases else manifest


_EFFECTS: dict[str, Callable[[Manifest, list[_Group]], Manifest]] = {
    LEAVE_OUT: _leave_out,
    KEEP_ONE: _keep_one,
    SAME_PATIENT: _join,
    MOVE_TO_TRAINING: _move_to_training,
    KEEP_IN_TEST: _keep_in_test,
    NOTHING_THERE: _nothing_there,
}


def _without(manifest: Manifest, names: set[str]) -> Manifest:
    return _changed(manifest, lambda split, entry: None if name_of(entry) in names else entry) if names else manifest


def _changed(manifest: Manifest, change: Callable[[Split, Entry], Entry | None]) -> Manifest:
    lists: dict[str, list[Any]] = {}
    for split in SPLITS:
        changed = [change(split, e) if isinstance(e, Entry) else e for e in getattr(manifest, split)]
        lists[split] = [entry for entry in changed if entry is not None]
    return manifest.model_copy(update=lists)


def _count(manifest: Manifest) -> int:
    return len(manifest.entries) + len(manifest.quarantine)


def _patient(entry: Entry) -> str:
    return entry.patient or name_of(entry)
