"""What a job learns from, and how a site's label values become the job's, by names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from oncofed.data.manifest import Entry, Manifest
from oncofed.data.targets import Target, declared_target, stated_value

# The kind of label that a job learns from: a mask of each image, its class, named targets of the case, or boxes around
# its objects.
LabelKind = Literal["mask", "class", "targets", "boxes"]
# Name of the label of voxels that nobody labelled; a dataset need not have it.
IGNORED = "ignore"


@dataclass(frozen=True)
class Supervision:
    """What a job learns from.

    Attributes:
        kind: of the labels.
        classes: label value -> name, without a mask's background; empty for targets.
        targets: named ones; empty for others.
        partial: a dataset may lack some of a mask's classes, which are then unknown in its cases.
    """

    kind: LabelKind = "mask"
    classes: Mapping[int, str] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    partial: bool = False

    def of_entry(self, manifest: Manifest, entry: Entry) -> bool:
        """Return whether an entry states what is learned.

        Args:
            manifest: of the dataset.
            entry: of it.

        Raises:
            DataError: the dataset declares a target of another kind under a target's name.
        """
        if self.kind == "boxes":
            return entry.boxes is not None or isinstance(entry.label, str)
        if self.kind != "targets":
            return isinstance(entry.label, str if self.kind == "mask" else int)
        return any(
            declared_target(manifest.targets, manifest.labels, target) is not None
            and stated_value(entry.targets, entry.label, manifest.labels, target) is not None
            for target in self.targets
        )

    @property
    def in_words(self) -> str:
        """What an entry must state."""
        words = {"mask": "a mask as label", "class": "the number of a class as label", "boxes": "boxes or a mask"}
        return words.get(self.kind) or f"any of the targets {', '.join(target.name for target in self.targets)}"


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
    if wanted.kind == "targets":
        return Vocabulary()
    return (match_classes if wanted.kind == "class" else match_labels)(manifest, wanted.classes)


def match_labels(manifest: Manifest, classes: Mapping[int, str]) -> Vocabulary:
    """Match a dataset's labels with a job's.

    Names are compared without regard to case, and spaces, _ and - are the same; ``label_map`` of the manifest goes
    before them. Where nobody named the dataset's labels, values are taken for what they are.

    Args:
        manifest: the dataset.
        classes: the job's label values and names, without background.
    """
    instances = manifest.label_kind == "instances"
    names = {int(float(value)): name for value, name in manifest.labels.items() if int(float(value)) != 0}
    if not manifest.label_map and all(_is_unnamed(value, name) for value, name in names.items()):
        return _by_value(names, classes, instances)
    matched, how, problems = _by_name(names, manifest, classes, "label", "becomes background", "for background")
    values = {value: target or 0 for value, target in matched.items()}
    unknown = sorted(set(map(name_key, manifest.label_map)) - set(map(name_key, names.values())))
    if unknown:
        problems.append(
            f"label_map names {', '.join(unknown)}, which no label of the dataset is called: known are "
            f"{', '.join(sorted(names.values()))}"
        )
    missing = [name for value, name in classes.items() if value not in values.values() and name != IGNORED]
    if missing and not problems:
        problems.append(
            f"no label of the dataset stands for {', '.join(missing)}; say which one does in dataset.json: "
            f'"label_map": {{"NAME": "{missing[0]}"}}'
        )
    if instances:
        how.append("every numbered object becomes its class")
    same = not instances and all(value == target for value, target in values.items())
    return Vocabulary(values=None if same else values, instances=instances, how=how, problems=problems)


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
    matched, how, problems = _by_name(names, manifest, classes, "class", "is left out", "leaves its images out")
    values = {value: target for value, target in matched.items() if target is not None}
    absent = [name for value, name in classes.items() if value not in values.values()]
    if absent and not problems:
        how.append(f"this site has no {', '.join(absent)}")
    return Vocabulary(values=values, instances=False, how=how, problems=problems)


def _by_name(
    names: Mapping[int, str], manifest: Manifest, classes: Mapping[int, str], noun: str, dropped: str, null: str
) -> tuple[dict[int, int | None], list[str], list[str]]:
    """Match names with a job's.

    Args:
        names: value -> name, of the dataset.
        manifest: its ``label_map`` goes before the names.
        classes: value -> name, of the job.
        noun: what the names are of, for messages.
        dropped: what happens to a name that the map says null of, or that is of the background of a mask.
        null: what null is for, in the map.

    Returns:
        value -> the job's, or None for what is dropped; what is converted; what does not fit.
    """
    wanted = {name_key(name): value for value, name in classes.items()}
    mapping = {name_key(name): target for name, target in manifest.label_map.items()}
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
        elif hint := _ignore_hint(name, value, classes, noun):
            problems.append(hint)
        else:
            problems.append(
                f"its {noun} {name!r} is none of the job's; say in dataset.json which it is: "
                f'"label_map": {{"{name}": "NAME"}} (null {null})'
            )
    return values, how, problems


def _by_value(names: Mapping[int, str], classes: Mapping[int, str], instances: bool) -> Vocabulary:
    if not instances:
        return Vocabulary()
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


def name_key(name: str) -> str:
    """Return a name for comparison, without case and separators."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _is_unnamed(value: int, name: str) -> bool:
    return name.strip() in {str(value), ""}
