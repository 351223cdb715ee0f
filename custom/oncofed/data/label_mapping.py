"""What a job learns from, and how a site's label values become the job's, by names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from oncofed.data.label_codes import by_codes, contradicting
from oncofed.data.label_names import IGNORED, OVERLAP, name_key
from oncofed.data.looked_for import alike_by, named, named_regions, stated, tells
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.targets import Target, declared_target, stated_value

# The kind of label that a job learns from: a mask of each image, its class, named targets of the case, or boxes around
# its objects; none: images alone.
LabelKind = Literal["mask", "class", "targets", "boxes", "none"]
_UNNAMED = (
    "its labels have no names, and sites of this job may lack some of {} ({}): nothing tells which this one "
    'has. Name them in dataset.json ("labels"), or register the folder again with --labels VALUE=NAME'
)


@dataclass(frozen=True)
class Supervision:
    """What a job learns from.

    Attributes:
        kind: of the labels.
        classes: label value -> name, without a mask's background; of targets, those of a mask beside them.
        codes: label value -> its code with modifiers, such as SCT:64033007+SCT:7771000; of classes that have one.
        targets: named ones; empty for others.
        partial: a dataset may lack some of a mask's classes, which are then unknown in its cases.
        regions: of a mask, name -> label values; by them a dataset may name its values instead (nnU-Net's regions).
        whole_patients: all slides of a patient are one case.
        of_empty: a slide on which nothing was drawn is learned from, as one that has none.
    """

    kind: LabelKind = "mask"
    classes: Mapping[int, str] = field(default_factory=dict)
    codes: Mapping[int, str] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    partial: bool = False
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    whole_patients: bool = False
    of_empty: bool = False

    def of_entry(self, manifest: Manifest, entry: Entry) -> bool:
        """Return whether an entry states what is learned.

        Args:
            manifest: of the dataset.
            entry: of it.

        Raises:
            DataError: the dataset declares a target of another kind under a target's name.
        """
        if self.kind == "none":
            return True
        if self.kind == "boxes":
            return entry.boxes is not None or isinstance(entry.label, str)
        if self.kind != "targets":
            return isinstance(entry.label, str if self.kind == "mask" else int)
        return self.has_mask(entry) or any(
            (declared := declared_target(manifest.targets, manifest.labels, target)) is not None
            and stated_value(declared, entry.targets, entry.label, manifest.labels, target) is not None
            for target in self.targets
        )

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is told apart in a mask, name -> label values: regions, or each class by itself."""
        if self.regions:
            return {name: tuple(values) for name, values in self.regions.items()}
        return {name: (value,) for value, name in self.classes.items() if name != IGNORED}

    @property
    def label_values(self) -> int:
        """Number of a mask's label values, with background."""
        return 1 + sum(name != IGNORED for name in self.classes.values())

    @property
    def reads_masks(self) -> bool:
        """Whether masks are learned, alone or beside targets."""
        return self.kind == "mask" or (self.kind == "targets" and bool(self.classes))

    def has_mask(self, entry: Entry) -> bool:
        """Return whether an entry has a mask that is to be learned; it may turn out to be faulty."""
        return self.reads_masks and isinstance(entry.label, str)

    @property
    def partial_setting(self) -> str:
        """Where a job says that masks may lack classes."""
        return "partial: true of the target of kind mask" if self.kind == "targets" else "task.partial: true"

    @property
    def in_words(self) -> str:
        """What an entry must state."""
        words = {
            "mask": "a mask as label",
            "class": "the number of a class as label",
            "boxes": "boxes or a mask",
            "none": "an image",
        }
        mask = "a mask, or " if self.classes else ""
        return words.get(self.kind) or f"{mask}any of the targets {', '.join(target.name for target in self.targets)}"


@dataclass(frozen=True)
class Vocabulary:
    """How a dataset's labels become a job's.

    Attributes:
        values: the dataset's label value -> the job's, 0 being background; None: they are the same.
        instances: the masks number their objects; all of them are one class.
        how: what is converted, for people; empty where nothing is.
        problems: why the labels do not fit; empty where they do.
    """

    values: Mapping[int, int] | None = None
    instances: bool = False
    how: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def match(manifest: Manifest, wanted: Supervision) -> Vocabulary:
    """Match a dataset's labels with what a job learns from.

    Targets are matched by name, case by case (``Target.encode``).
    """
    if wanted.kind == "none" or (wanted.kind == "targets" and not any(map(wanted.has_mask, manifest.entries))):
        return Vocabulary()
    if wanted.kind == "class":
        return match_classes(manifest, wanted.classes)
    return match_labels(manifest, wanted)


def match_labels(manifest: Manifest, wanted: Supervision) -> Vocabulary:
    """Match a dataset's labels with a job's.

    Codes go before names (``label_codes``), and ``label_map`` of the manifest before both. Names are compared without
    regard to case, and spaces, _ and - are the same. Where nobody named the dataset's labels, values are taken for
    what they are; of numbered objects without a class to learn, too.

    Args:
        manifest: the dataset.
        wanted: what the job learns from. Where it is partial, the dataset may lack some classes, but not all, and has
            to name those that it has.
    """
    classes, partial = wanted.classes, wanted.partial
    if contradictions := contradicting(manifest, classes, wanted.codes):
        return Vocabulary(problems=contradictions)
    manifest = by_codes(manifest, classes, wanted.codes)
    instances = manifest.label_kind == "instances"
    names = _label_names(manifest)
    if not manifest.label_map and all(_is_unnamed(value, name) for value, name in names.items()):
        if partial:
            return Vocabulary(
                instances=instances, problems=[_UNNAMED.format(", ".join(classes.values()), wanted.partial_setting)]
            )
        return _by_value(names, classes, instances)
    # What is not of a region that nobody looked for is as good a match as what is.
    regions = named_regions(manifest, wanted.regions) if partial else wanted.regions
    matched, how, problems = _by_name(
        names, manifest, classes, "label", "becomes background", "for background", regions
    )
    values = {value: target or 0 for value, target in matched.items()}
    unknown = sorted(set(map(name_key, manifest.label_map)) - set(map(name_key, names.values())))
    if unknown:
        problems.append(
            f"label_map names {', '.join(unknown)}, which no label of the dataset is called: known are "
            f"{', '.join(sorted(names.values()))}"
        )
    missing = [name for value, name in classes.items() if value not in values.values() and name != IGNORED]
    alike = alike_by([sought.values for sought in named(manifest, classes, regions, values)], wanted.label_values)
    if missing and partial and (alike is None or any(alike)):
        unknown_ones = [name for name, of in wanted.structures.items() if not tells(alike, of)]
        how += [f"nobody looked for {', '.join(unknown_ones)} here, which stays unknown"] if unknown_ones else []
    elif missing and not problems and (drawn := named_regions(manifest, wanted.regions)):
        problems.append(
            f"it names the regions {', '.join(drawn)}, which do not tell {', '.join(missing)} from the others. Say in "
            f"the job that masks may lack regions: {wanted.partial_setting}"
        )
    elif missing and not problems:
        problems.append(
            f"no label of the dataset stands for {', '.join(missing)}; say which one does in dataset.json: "
            f'"label_map": {{"NAME": "{missing[0]}"}}'
        )
    if instances:
        how.append("every numbered object becomes its class")
    # A value that the job alone has would else pass for its class.
    same = not instances and not (partial and missing) and all(value == target for value, target in values.items())
    return Vocabulary(values=None if same else values, instances=instances, how=how, problems=problems)


def alike(manifest: Manifest, entry: Entry, wanted: Supervision, vocabulary: Vocabulary) -> tuple[int, ...] | None:
    """Return for each of the job's label values, from 0, the least that a case's mask does not tell it from.

    None: it tells all apart. See ``looked_for``.

    Args:
        manifest: the dataset.
        entry: one of its cases.
        wanted: what the job learns from.
        vocabulary: of the dataset, without problems.

    Raises:
        DataError: the entry looked for a label that the dataset does not name.
    """
    manifest = by_codes(manifest, wanted.classes, wanted.codes)
    of_dataset = named(manifest, wanted.classes, wanted.regions, vocabulary.values)
    if entry.looked_for is not None:
        return alike_by(stated(entry.looked_for, of_dataset, manifest, wanted.regions), wanted.label_values)
    return alike_by((sought.values for sought in of_dataset), wanted.label_values) if wanted.partial else None


def match_classes(manifest: Manifest, classes: Mapping[int, str]) -> Vocabulary:
    """Match a dataset's image classes with a job's.

    As ``match_labels`` does; a site may lack some of them.

    A class that ``label_map`` says null of is left out with its images.
    """
    names = {int(float(value)): name for value, name in manifest.labels.items()}
    if not manifest.label_map and all(_is_unnamed(value, name) for value, name in names.items()):
        unknown = sorted(set(names) - set(classes))
        own, jobs = (", ".join(map(str, sorted(values))) for values in (unknown, classes))
        problems = [f"its classes {own} are none of the job's, {jobs}"] if unknown else []
        return Vocabulary(problems=problems)
    matched, how, problems = _by_name(names, manifest, classes, "class", "is left out", "leaves its images out", {})
    values = {value: target for value, target in matched.items() if target is not None}
    absent = [name for value, name in classes.items() if value not in values.values()]
    if absent and not problems:
        how.append(f"this site has no {', '.join(absent)}")
    return Vocabulary(values=values, instances=False, how=how, problems=problems)


def _by_name(
    names: Mapping[int, str],
    manifest: Manifest,
    classes: Mapping[int, str],
    noun: str,
    dropped: str,
    null: str,
    regions: Mapping[str, Sequence[int]],
) -> tuple[dict[int, int | None], list[str], list[str]]:
    """Match names with a job's.

    Args:
        names: value -> name, of the dataset.
        manifest: its ``label_map`` goes before the names.
        classes: value -> name, of the job.
        noun: what the names are of, for messages.
        dropped: what happens to a name that the map says null of, or that is of the background of a mask.
        null: what null is for, in the map.
        regions: of the job, name -> values.

    Returns:
        value -> the job's, or None for what is dropped; what is converted; what does not fit.
    """
    wanted = {name_key(name): value for value, name in classes.items()}
    mapping = {name_key(name): target for name, target in manifest.label_map.items()}
    of_regions: dict[frozenset[str], list[int]] = {}
    for value in classes:
        of_regions.setdefault(_region_key(name for name, of in regions.items() if value in of), []).append(value)
    values: dict[int, int | None] = {}
    problems, how = [], []
    for value, name in sorted(names.items()):
        target = mapping.get(name_key(name), name)
        if target is None or (noun == "label" and target.lower() == "background"):
            values[value] = None
            how.append(f"{name} ({value}) {dropped}")
        elif name_key(target) in wanted:
            found = values[value] = wanted[name_key(target)]
            if found != value or name_key(target) != name_key(name):
                how.append(f"{name} ({value}) becomes {classes[found]} ({found})")
        elif among := of_regions.get(_region_key(target.split(OVERLAP))):
            values[value] = among[-1]
            one = f"{name} ({value}) becomes {classes[among[-1]]} ({among[-1]})"
            how.append(f"{name} ({value}): {_any_of(among, classes)}, not told apart" if among[1:] else one)
        elif ignored := _ignore_hint(name, value, classes, noun):
            problems.append(ignored)
        elif overlapping := _overlap_hint(name, value):
            problems.append(overlapping)
        else:
            problems.append(
                f"its {noun} {name!r} is none of the job's; say in dataset.json which it is: "
                f'"label_map": {{"{name}": "NAME"}} (null {null})'
            )
    return values, how, problems


def _by_value(names: Mapping[int, str], classes: Mapping[int, str], instances: bool) -> Vocabulary:
    if not instances or not classes:
        return Vocabulary(instances=instances)
    if len(classes) > 1:
        return Vocabulary(
            instances=True,
            problems=[f"its masks number objects of one kind, the job learns {', '.join(classes.values())}"],
        )
    name = next(iter(classes.values()))
    return Vocabulary({1: 1}, True, [f"every numbered object becomes {name} (1)"])


def _ignore_hint(name: str, value: int, classes: Mapping[int, str], noun: str) -> str:
    """Return advice on a dataset's unlabelled voxels."""
    if noun != "label" or name_key(name) not in {IGNORED, "void", "unlabeled", "unlabelled"}:
        return ""
    return (
        f"its label {name!r} ({value}) marks voxels that nobody labelled, and the job would learn from them. Say in "
        f"the job, under task, that they are left out: ignore: {max(classes, default=0) + 1}"
        + ("" if name_key(name) == IGNORED else f', and in dataset.json: "label_map": {{"{name}": "{IGNORED}"}}')
    )


def _label_names(manifest: Manifest) -> dict[int, str]:
    """Return the names of a dataset's label values, without background."""
    return {int(float(value)): name for value, name in manifest.labels.items() if int(float(value)) != 0}


def _any_of(values: Sequence[int], classes: Mapping[int, str]) -> str:
    *first, last = (classes[value] for value in values)
    return f"{', '.join(first)} or {last}"


def _region_key(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(name_key, names))


def _overlap_hint(name: str, value: int) -> str:
    """Return advice on a value that several regions share."""
    if OVERLAP not in name:
        return ""
    return (
        f"its labels are regions that overlap: {value} is of {name.replace(OVERLAP, ' and ')}. Let the job learn "
        "regions of these names (task.type: regions), or name each single value instead: register the folder with "
        f"--labels {value}=NAME,..."
    )


def _is_unnamed(value: int, name: str) -> bool:
    return name.strip() in {str(value), ""}
