"""A job's cases: training, validation, test, and their checks.

The key ``patient`` of an entry of ``dataset.json``, where there is one, keeps a patient's images on one side of the
split; otherwise each case is a patient.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from oncofed.data import boxes, case_facts
from oncofed.data.covariates import row_faults
from oncofed.data.dealing import Stratum, deal, deal_by_stratum, strata_of
from oncofed.data.decisions import decided
from oncofed.data.formats.common import LoadedImage
from oncofed.data.grouping import finding_lines, millimetres
from oncofed.data.images import stem
from oncofed.data.label_mapping import IGNORED, Supervision, Vocabulary, looked_for, match
from oncofed.data.manifest import (
    MANIFEST_FILE,
    SALT_FILE,
    SPLITS,
    Entry,
    Manifest,
    Quarantined,
    Split,
    inside,
    read_manifest,
)
from oncofed.data.masks import read_mask, value_name
from oncofed.data.same_grid import turned_onto
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.data.targets import Encoded, TargetValue, declared_target, is_known, stated_value, unknown
from oncofed.errors import DataError


@dataclass(frozen=True)
class Case:
    """One image with its reference label.

    Attributes:
        name: of the case; it stays at the site.
        patient: key of the patient.
        image: the image's file, or that of its first channel.
        label: the mask's file, or the number of the image's class in the job.
        more_images: files of the other channels.
        label_values: the file's label values -> the job's; None: the same.
        instances: the mask numbers objects, all of class 1 of ``label_values``.
        spacing: pixel size in mm along each axis, for a file that cannot say it.
        reading: of the mask: whether by its palette's colours, and which values have names; see ``read_mask``.
        entry: what the manifest knows of it; None where nobody has registered it.
        tiles: file with the places of a slide's tiles.
        folder: of the registered dataset, where prepared cases may be kept; None where nobody has registered it.
        targets: of a job that learns targets, name -> numbers; NaN: unknown.
        target_fault: why its targets, or what was looked for in its mask, cannot be used; empty where they can.
        looked_for: the job's classes that were looked for in the mask; None: all.
        boxes: of a job that looks for objects, those that the dataset states; None: its mask shows them.
        may_be_empty: a mask without any object is fine.
    """

    name: str
    patient: str
    image: Path
    label: Path | int
    more_images: tuple[Path, ...] = ()
    label_values: tuple[tuple[int, int], ...] | None = None
    instances: bool = False
    spacing: tuple[float, ...] | None = None
    reading: tuple[bool, tuple[int, ...]] = (False, ())
    entry: Entry | None = field(default=None, compare=False, repr=False)
    tiles: Path | None = None
    folder: Path | None = field(default=None, compare=False, repr=False)
    targets: Mapping[str, Encoded] = field(default_factory=dict, compare=False, repr=False)
    target_fault: str = field(default="", compare=False, repr=False)
    looked_for: frozenset[int] | None = None
    boxes: tuple[boxes.Box, ...] | None = field(default=None, compare=False, repr=False)
    may_be_empty: bool = False

    @property
    def images(self) -> tuple[Path, ...]:
        """Files of all channels."""
        return (self.image, *self.more_images)

    @property
    def files(self) -> list[Path]:
        """Files of the image and its mask."""
        return [*self.images, *([self.label] if isinstance(self.label, Path) else [])]

    @property
    def mask(self) -> Path:
        """The mask's file; segmentation only."""
        assert isinstance(self.label, Path)
        return self.label

    @property
    def class_label(self) -> int:
        """The job's number of the image's class; classification only."""
        assert isinstance(self.label, int)
        return self.label

    def read(self, numbered: bool = False) -> tuple[LoadedImage, LoadedImage]:
        """Read image and label; the label holds the job's values.

        Args:
            numbered: keep the numbers of single objects, where the mask has them.

        Raises:
            DataError: a file cannot be read.
        """
        image, label = case_facts.read_case(self.images, self.mask, *self.reading)
        assert label is not None
        image, label = self._placed(image), replace(label, values=self._translated(label.values, numbered))
        # A file that does not state its pixel size lies where the other does.
        both = image.calibrated and label.calibrated
        return image, label if both else replace(label, affine=image.affine, calibrated=image.calibrated)

    def read_image(self) -> LoadedImage:
        """Read the image alone."""
        return self._placed(case_facts.read_case(self.images, None)[0])

    def read_label(self, numbered: bool = False) -> LoadedImage:
        """Read the label alone; see ``read``."""
        label = read_mask(self.mask, *self.reading)
        if label.calibrated:
            label = turned_onto(self._grid(), label, "its label")
        return self._placed(replace(label, values=self._translated(label.values, numbered)))

    def _grid(self) -> LoadedImage:
        """Return an image on the case's grid.

        As registered, else by reading the image.
        """
        entry = self.entry
        if not (entry and entry.shape and entry.affine):
            return self.read_image()
        values: case_facts.Values = np.broadcast_to(np.zeros((), np.uint8), (*entry.shape, 1))
        return LoadedImage(values, np.array(entry.affine, np.float64), "uint8")

    def _placed(self, image: LoadedImage) -> LoadedImage:
        if image.calibrated or not self.spacing:
            return image
        return replace(image, affine=np.diag([*self.spacing, *[1.0] * (4 - len(self.spacing))]), calibrated=True)

    def _translated(self, values: case_facts.Values, numbered: bool) -> case_facts.Values:
        if self.instances and numbered:
            return values.astype(np.int32)
        if numbered:
            # A mask of one value for all objects: each connected component is an object.
            pieces: case_facts.Values = ndimage.label(self._translated(values, False) > 0)[0]
            return pieces
        if self.instances:
            target = dict(self.label_values or ((1, 1),)).get(1, 1)
            return ((values > 0) * target).astype(np.uint8)
        if self.label_values is None:
            return values
        result = np.zeros(values.shape, np.uint8)
        for value, target in self.label_values:
            result[values == value] = target
        return result


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
class Problem:
    """Why one case cannot be used."""

    case: str
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


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
    set_aside = [*map(_from_quarantine, manifest.quarantine), *problems]
    everything = total + len(manifest.quarantine)
    if set_aside and len(set_aside) > data.max_bad_share * everything:
        listed = "\n  ".join(finding_lines((problem.case, problem.what) for problem in set_aside))
        raise DataError(
            f"{where}: {len(set_aside)} of {everything} cases cannot be used, more than the share of "
            f"{data.max_bad_share:g} that may be set aside (data.max_bad_share):\n  {listed}\n"
            "oncofed data check names the command that goes on without them. "
            "Repair them, or let more be set aside: --max-bad-share 1"
        )
    usable = cases.without({problem.case for problem in problems}).require_training(where)
    left = len(list(usable))
    if left < data.minimum_cases:
        raise DataError(
            f"{where}: {left} usable cases, expected at least {data.minimum_cases} (the job's data.minimum_cases). Add "
            "labelled cases or leave the site out."
        )
    return Usable(usable, set_aside, known)


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
        case = _wanted_case(folder, manifest, entry, wanted, vocabulary, values)
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


def _wanted_case(
    folder: Path,
    manifest: Manifest,
    entry: Entry,
    wanted: Supervision,
    vocabulary: Vocabulary,
    values: tuple[tuple[int, int], ...] | None,
) -> Case | None:
    """Return an entry as a case; None where it lacks what is learned."""
    if not wanted.of_entry(manifest, entry):
        return None
    if wanted.kind == "targets":
        return with_targets(case_of(folder, manifest, entry), manifest, entry, wanted)
    if wanted.kind == "boxes":
        return _with_boxes(case_of(folder, manifest, entry, values), entry)
    if wanted.kind == "class" and values is not None and entry.label not in dict(values):
        return None
    case = case_of(folder, manifest, entry, values)
    if wanted.kind == "mask" and wanted.classes and (wanted.partial or entry.looked_for is not None):
        return _with_looked_for(case, manifest, entry, wanted, vocabulary)
    return case


def _with_looked_for(
    case: Case, manifest: Manifest, entry: Entry, wanted: Supervision, vocabulary: Vocabulary
) -> Case | None:
    """Return a case with the classes looked for in its mask.

    None where none of the job's were. What is drawn of another class is as unknown as the voxels around it.
    """
    try:
        known = looked_for(manifest, entry, wanted, vocabulary)
    except DataError as error:
        return replace(case, target_fault=str(error))
    if known is None:
        return case
    if not wanted.partial:
        missing = ", ".join(name for value, name in wanted.classes.items() if value not in known and name != IGNORED)
        return replace(
            case,
            target_fault=f"nobody looked for {missing} in its mask, and the job takes what is not drawn for "
            "background. Say in the job that masks may lack classes: task.partial: true",
        )
    if not known:
        return None
    kept = {*known, *(value for value, name in wanted.classes.items() if name == IGNORED)}
    pairs = case.label_values or tuple((value, value) for value in wanted.classes)
    return replace(
        case,
        looked_for=known,
        label_values=tuple((value, target if target in kept else 0) for value, target in pairs),
    )


def with_targets(case: Case, manifest: Manifest, entry: Entry, wanted: Supervision) -> Case | None:
    """Return a case with its targets; None where it states none."""
    found: dict[str, Encoded] = {}
    faults = []
    for target in wanted.targets:
        found[target.name] = unknown(target)
        declared = declared_target(manifest.targets, manifest.labels, target)
        stated = stated_value(entry.targets, entry.label, manifest.labels, target)
        if declared is None or stated is None:
            continue
        try:
            found[target.name] = target.encode(stated, declared)
        except DataError as error:
            faults.append(str(error))
    if not faults and not any(map(is_known, found.values())):
        return None
    return replace(case, targets=found, target_fault="; ".join(faults))


def _with_boxes(case: Case, entry: Entry) -> Case:
    """Return a case with the boxes that its entry states."""
    case = replace(case, may_be_empty=True)
    return case if entry.boxes is None else replace(case, label=0, boxes=tuple(entry.boxes))


def check_cases(
    cases: Iterable[Case],
    classes: Sequence[int],
    data: DataSpec | None = None,
    workers: int = 4,
    progress: Callable[[], None] | None = None,
    known: dict[Case, Entry] | None = None,
) -> list[Problem]:
    """Return the problems of all cases.

    Files that are as they were when the dataset was registered are not read again.

    Args:
        cases: the cases to check.
        classes: label values that the job learns; 0 is background.
        data: the job's contract; None: a volume of one channel.
        workers: files read at the same time.
        progress: called after each case.
        known: takes the facts of each case.
    """

    def check(case: Case) -> Problem | None:
        problem = check_case(case, classes, data, known)
        if progress:
            progress()
        return problem

    with ThreadPoolExecutor(workers) as pool:
        return [problem for problem in pool.map(check, cases) if problem]


def check_case(
    case: Case, classes: Sequence[int], data: DataSpec | None = None, known: dict[Case, Entry] | None = None
) -> Problem | None:
    """Return why ``case`` cannot be used, or None; see ``check_cases``."""
    try:
        entry = known_facts(case)
        if known is not None:
            known[case] = entry
    except Exception as error:  # noqa: BLE001 - one case that cannot be read does not keep the others from training
        return Problem(case.name, case_facts.reason_of(error))
    data = data or DataSpec(dataset="any")
    found = [*contract_faults(entry, data), *row_faults(entry, data.covariates)]
    found += case_facts.faults(entry, case.may_be_empty)
    found += [case.target_fault] if case.target_fault else []
    if case.boxes is not None:
        fault = boxes.fault(case.boxes, entry.shape or [], dict(case.label_values or ((c, c) for c in classes)))
        found += [fault] if fault else []
    elif not case.targets and not entry.label_problem:
        found += label_faults(case, entry, classes)
    return Problem(case.name, "; ".join(found)) if found else None


def known_facts(case: Case) -> Entry:
    """Return the facts of a case.

    They are read again only where its files have changed since it was registered.

    Raises:
        DataError: a file cannot be read.
    """
    files = case.files
    entry = case.entry
    if (
        entry
        and entry.stamp
        and entry.shape
        and all(f.exists() for f in files)
        and entry.stamp == case_facts.stamp(files)
    ):
        return entry
    if case.tiles:
        raise DataError("its slide is missing or has changed since it was registered; register the dataset again")
    mask = case.label if isinstance(case.label, Path) else None
    image, label = case_facts.read_case(case.images, mask, *case.reading)
    found = case_facts.measure(image, label)
    base = entry or Entry(image=case.image.name)
    return base.model_copy(update={"label_problem": None, **found})


def contract_faults(entry: Entry, data: DataSpec) -> list[str]:
    """Return why an image does not meet a job's contract."""
    shape = entry.shape or []
    found = []
    if len(shape) != data.dimensions:
        kinds = {2: "a flat image", 3: "a volume"}
        found.append(
            f"its image is {kinds.get(len(shape), f'of {len(shape)} axes')}, expected {kinds[data.dimensions]}"
        )
    elif not channels_fit(entry.channels or 1, data):
        found.append(
            f"its image has {entry.channels} channels, expected {len(data.channels)}: {', '.join(data.channels)}"
        )
    if data.size_range and shape and not data.size_range[0] <= min(shape) <= max(shape) <= data.size_range[1]:
        found.append(f"its image has {'x'.join(map(str, shape))} voxels, expected {_between(data.size_range)} a side")
    if data.spacing_range and entry.spacing is None:
        found.append(f"its image does not say how large its pixels are, expected {_between(data.spacing_range)} mm")
    elif data.spacing_range and entry.spacing:
        low, high = data.spacing_range
        if not low - 1e-6 <= min(entry.spacing) <= max(entry.spacing) <= high + 1e-6:
            sides = " x ".join(map(millimetres, entry.spacing))
            found.append(f"its voxels are {sides} mm, expected {_between(data.spacing_range)} mm a side")
    if data.spacing and not entry.spacing:
        found.append("its image does not say how large its pixels are, so that it cannot be resampled")
    return found


def channels_fit(channels: int, data: DataSpec) -> bool:
    """Return whether an image has the job's channels.

    A flat image's grey and colour can become each other.
    """
    wanted = len(data.channels)
    return channels == wanted or (data.dimensions == 2 and {channels, wanted} == {1, 3})


def _between(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g} to {pair[1]:g}"


def label_faults(case: Case, entry: Entry, classes: Sequence[int]) -> list[str]:
    """Return the faults of a label with unknown values."""
    if case.instances or entry.label_values is None or isinstance(case.label, int):
        return []
    known = dict(case.label_values) if case.label_values is not None else {value: value for value in classes}
    extra = [value_name(v) for v in sorted(case_facts.label_counts(entry.label_values)) if v not in {0, *known}]
    if not extra:
        return []
    expected = ", ".join(map(value_name, sorted({0, *known})))
    return [f"its label holds the values {', '.join(extra[:5])}, expected only {expected}"]


def _from_quarantine(bad: Quarantined) -> Problem:
    return Problem(bad.name, bad.reason)


def case_of(folder: Path, manifest: Manifest, entry: Entry, values: tuple[tuple[int, int], ...] | None = None) -> Case:
    """Return an entry of a dataset as a case.

    Args:
        folder: the dataset's.
        manifest: of the dataset.
        entry: one of its own; without a label it has class 0.
        values: the dataset's label values -> the job's; None: the dataset's own.
    """
    images = [inside(folder, image) for image in entry.images]
    label: Path | int
    if isinstance(entry.label, str):
        label = inside(folder, entry.label)
    else:
        label = dict(values or ()).get(entry.label or 0, entry.label or 0)
    name = entry.name or stem(images[0])
    return Case(
        name=name,
        patient=entry.patient or name,
        image=images[0],
        label=label,
        more_images=tuple(images[1:]),
        label_values=values,
        instances=manifest.label_kind == "instances",
        spacing=tuple(entry.spacing) if entry.spacing else None,
        reading=manifest.reading(entry),
        entry=entry,
        tiles=inside(folder, entry.tiles) if entry.tiles else None,
        folder=folder if (folder / SALT_FILE).is_file() else None,
    )


def _strata(cases: Sequence[Case], manifest: Manifest, wanted: Supervision) -> dict[str, Stratum]:
    """Return patient -> stratum by the targets; empty for masks and classes."""
    stated: dict[str, list[list[TargetValue | None]]] = defaultdict(list)
    for case in cases if wanted.kind == "targets" else ():
        assert case.entry is not None
        said, label = case.entry.targets, case.entry.label
        stated[case.patient].append([stated_value(said, label, manifest.labels, target) for target in wanted.targets])
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
