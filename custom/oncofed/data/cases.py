"""A job's cases: training, validation, test, and their checks.

The key ``patient`` of an entry of ``dataset.json``, where there is one, keeps a patient's images on one side of the
split; otherwise each case is a patient.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from oncofed.data.case import Case, wanted_case
from oncofed.data.case_checks import Problem, check_cases
from oncofed.data.dealing import Stratum, deal, deal_by_stratum, strata_of
from oncofed.data.decisions import decided
from oncofed.data.grouping import finding_lines
from oncofed.data.label_mapping import Supervision, match
from oncofed.data.manifest import (
    MANIFEST_FILE,
    SPLITS,
    Entry,
    Manifest,
    Quarantined,
    Split,
    read_manifest,
)
from oncofed.data.patients import whole_patients
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.data.stain.of_case import with_slides_colours
from oncofed.data.targets import TargetValue, declared_target, stated_value
from oncofed.errors import DataError


@dataclass(frozen=True)
class Cases:
    """A site's cases by purpose; no patient is in two."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    def __iter__(self) -> Iterator[Case]:
        return iter((*self.train, *self.validation, *self.test))

    def without(self, names: set[str]) -> Cases:
        """Return the cases less those named."""
        return Cases(
            *(tuple(c for c in part if c.name not in names) for part in (self.train, self.validation, self.test))
        )

    def without_masks(self, names: set[str]) -> Cases:
        """Return the cases, those named without their masks."""
        parts = (self.train, self.validation, self.test)
        return Cases(*(tuple(c.without_mask() if c.name in names else c for c in part) for part in parts))

    def with_slides_colours(self, facts: Mapping[Case, Entry]) -> Cases:
        """Return cases that know the colours of their whole slide.

        Args:
            facts: of the cases, where they were looked at.
        """
        known = (replace(case, entry=facts.get(case, case.entry)) for case in self)
        every = iter(with_slides_colours(list(known)))
        return Cases(*(tuple(next(every) for _ in part) for part in (self.train, self.validation, self.test)))

    def require_training(self, where: str) -> Cases:
        """Return the cases, or raise where they do not suffice."""
        if len(list(self)) > 1 and len({case.patient for case in self}) == 1:
            raise DataError(
                f"{where}: all {len(list(self))} cases are of one patient, so that none can be held out for the test. "
                f"Add other patients'. {_other_patients(list(self))}"
            )
        for purpose, part in (("training", self.train), ("test", self.test)):
            if not part:
                raise DataError(
                    f"{where}: no usable {purpose} case (found {len(self.train)} training, {len(self.validation)} "
                    f"validation, {len(self.test)} test; expected at least 1 training and 1 test). "
                    "Add labelled cases to dataset.json or leave the site out."
                )
        return self


def _other_patients(cases: Sequence[Case]) -> str:
    """Return how to tell patients apart.

    Cases of several patients may be taken for one's; only DICOM states studies.
    """
    images = [case.entry.images[0] for case in cases if case.entry and case.entry.tiles]
    if any(case.entry and case.entry.study for case in cases) or any(path.startswith("slides/") for path in images):
        return (
            "Where an anonymiser gave all patients one PatientID, register the folder again with --patient-from study "
            "(each study is a patient), series or folder."
        )
    return (
        "Where they are of several, say who each image's patient is in a table (image, label, patient), and register "
        "the folder again."
    )


@dataclass(frozen=True)
class Usable:
    """The cases of a dataset that a job can use.

    Attributes:
        cases: those that can be used.
        set_aside: those that cannot, and why: found now, or when the dataset was registered.
        facts: of those that were looked at.
    """

    cases: Cases
    set_aside: list[Problem]
    facts: Mapping[Case, Entry] = field(default_factory=dict, repr=False)


def usable_cases(
    folder: Path,
    data: DataSpec,
    wanted: Supervision,
    seed: int,
    where: str,
    progress: Callable[[int, int], None] | None = None,
) -> Usable:
    """Read, check and split a site's cases.

    Bad cases are set aside, up to ``data.max_bad_share``.

    Args:
        folder: the dataset.
        data: the job's contract.
        wanted: what the job learns from.
        seed: of the deal.
        where: the site's name, for messages.
        progress: called with (cases checked, cases in all).

    Raises:
        DataError: the dataset cannot be used, more than ``data.max_bad_share`` of its cases are bad, or too few are
            left.
    """
    manifest = decided(read_manifest(folder))
    cases = deal_cases(manifest, folder, data.split, seed, wanted, data.splits)
    total = len(list(cases))
    done = 0
    counting = threading.Lock()

    def advance() -> None:
        nonlocal done
        with counting:
            done += 1
            if progress:
                progress(done, total)

    known: dict[Case, Entry] = {}
    problems = check_cases(cases, list(wanted.classes), data, progress=advance, known=known)
    usable = used_cases(cases, problems)
    if wanted.whole_patients:
        usable, differing = by_patient(usable, data, wanted)
        problems += differing
    set_aside = [*map(_from_quarantine, manifest.quarantine), *(found for found in problems if not found.of_mask)]
    everything = total + len(manifest.quarantine)
    if set_aside and len(set_aside) > data.max_bad_share * everything:
        listed = "\n  ".join(finding_lines((problem.case, problem.what) for problem in set_aside))
        raise DataError(
            f"{where}: {len(set_aside)} of {everything} cases cannot be used, more than the share of "
            f"{data.max_bad_share:g} that may be set aside (data.max_bad_share):\n  {listed}\n"
            "oncofed data check names the command that goes on without them. "
            "Repair them, or let more be set aside: --max-bad-share 1"
        )
    usable = usable.require_training(where)
    left = len(list(usable))
    if left < data.minimum_cases:
        raise DataError(
            f"{where}: {left} usable cases, expected at least {data.minimum_cases} (the job's data.minimum_cases). Add "
            "labelled cases or leave the site out."
        )
    if data.stain.columns:
        usable = usable.with_slides_colours(known)
    return Usable(usable, set_aside, known)


def used_cases(cases: Cases, problems: Sequence[Problem]) -> Cases:
    """Return the cases less those with a problem; where it is the mask's beside targets, without the mask."""
    whole = {found.case for found in problems if not found.of_mask}
    return cases.without(whole).without_masks({found.case for found in problems if found.of_mask})


def read_cases(
    folder: Path,
    split: SplitSpec,
    seed: int,
    wanted: Supervision | None = None,
    splits: Sequence[Split] = SPLITS,
) -> Cases:
    """Read ``folder/dataset.json`` and split its patients.

    The lists ``validation`` and ``test`` of the file are used where they hold labelled cases; what they lack is dealt
    from ``training`` by a hash of patient and seed, so that adding a patient moves few others; if the job
    learns targets, in proportion to their values (``dealing.strata_of``).

    Args:
        folder: a dataset.
        split: shares to deal where the file does not say.
        seed: of the deal.
        wanted: what the job learns from, to which the dataset's labels are matched; cases without it are left out.
            None: masks, whose values are left as they are.
        splits: lists of the file that may be used.

    Raises:
        DataError: the folder or its ``dataset.json`` cannot be used.
    """
    return deal_cases(read_manifest(folder), folder, split, seed, wanted, splits)


def deal_cases(
    manifest: Manifest,
    folder: Path,
    split: SplitSpec,
    seed: int,
    wanted: Supervision | None = None,
    splits: Sequence[Split] = SPLITS,
) -> Cases:
    """Split the cases of a manifest; see ``read_cases``."""
    manifest, wanted = decided(manifest), wanted or Supervision()
    vocabulary = match(manifest, wanted)
    if wanted.classes and vocabulary.problems:
        jobs = ", ".join(wanted.classes.values())
        raise DataError(f"{folder / MANIFEST_FILE}: {'; '.join(vocabulary.problems)}. The job's labels: {jobs}.")
    values = tuple(vocabulary.values.items()) if wanted.classes and vocabulary.values is not None else None
    lists: dict[str, list[Case]] = {key: [] for key in SPLITS}
    for key, entry in manifest.by_split():
        if key not in splits:
            continue
        case = wanted_case(folder, manifest, entry, wanted, vocabulary, values)
        if case:
            lists[key].append(case)
    train = lists["training"]
    strata = _strata(train, manifest, wanted)
    parts: dict[str, list[Case]] = {}
    for purpose, share in (("test", split.test), ("validation", split.validation)):
        if lists[purpose]:
            parts[purpose] = lists[purpose]
        else:
            # A share is of all patients, so the second deal takes it from what the first one left.
            left = {case.patient for case in train}
            taken = len({case.patient for case in lists["training"]}) - len(left)
            if strata:
                chosen = deal_by_stratum({patient: strata[patient] for patient in left}, share, seed, purpose, taken)
            else:
                chosen = deal(left, share, seed, purpose, taken)
            parts[purpose] = [case for case in train if case.patient in chosen]
            train = [case for case in train if case.patient not in chosen]
    cases = Cases(tuple(train), tuple(parts["validation"]), tuple(parts["test"]))
    _refuse_shared_patients(folder, cases)
    return cases


def by_patient(cases: Cases, data: DataSpec, wanted: Supervision) -> tuple[Cases, list[Problem]]:
    """Return the cases with a patient's slides as one; see ``whole_patients``."""
    problems: list[Problem] = []
    parts = []
    for part in (cases.train, cases.validation, cases.test):
        joined, differing = whole_patients(part, data.covariates, wanted.classes)
        parts.append(tuple(joined))
        problems += differing
    return Cases(*parts), problems


def _from_quarantine(bad: Quarantined) -> Problem:
    return Problem(bad.name, bad.reason)


def _strata(cases: Sequence[Case], manifest: Manifest, wanted: Supervision) -> dict[str, Stratum]:
    """Return patient -> stratum by the targets; empty for masks and classes."""
    stated: dict[str, list[list[TargetValue | None]]] = defaultdict(list)
    targets = wanted.targets if wanted.kind == "targets" else ()
    declared = [(declared_target(manifest.targets, manifest.labels, target), target) for target in targets]
    for case in cases if wanted.kind == "targets" else ():
        assert case.entry is not None
        said, label = case.entry.targets, case.entry.label
        values = [stated_value(one, said, label, manifest.labels, target) for one, target in declared]
        stated[case.patient].append(values)
    return strata_of(stated)


def _refuse_shared_patients(folder: Path, cases: Cases) -> None:
    parts = {
        purpose: {c.patient for c in part}
        for purpose, part in (("training", cases.train), ("validation", cases.validation), ("test", cases.test))
    }
    for a, b in (("training", "validation"), ("training", "test"), ("validation", "test")):
        both = parts[a] & parts[b]
        if both:
            raise DataError(
                f"{folder / MANIFEST_FILE}: patient {sorted(both)[0]} is in both {a} and {b}. "
                "Expected each patient on one side of the split only."
            )


def pool_cases(by_site: dict[str, Cases]) -> Cases:
    """Return all sites' cases together.

    Names and patients carry their site's name, so that none collide.
    """

    def join(purpose: str) -> tuple[Case, ...]:
        return tuple(
            replace(case, name=f"{site}/{case.name}", patient=f"{site}/{case.patient}")
            for site, cases in sorted(by_site.items())
            for case in getattr(cases, purpose)
        )

    return Cases(join("train"), join("validation"), join("test"))
