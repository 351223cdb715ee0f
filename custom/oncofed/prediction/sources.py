"""Gathers cases to predict from files, folders and datasets.

Unregistered inputs are registered into a hidden folder, so that the same images are refused as in training.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from oncofed.atomic import write_whole
from oncofed.data import case_facts
from oncofed.data.accounts import by_weight
from oncofed.data.case import Case, case_of, wanted_case
from oncofed.data.case_checks import contract_faults, known_facts, label_faults
from oncofed.data.covariates import row_faults
from oncofed.data.decisions import decided
from oncofed.data.files import image_files
from oncofed.data.label_mapping import LabelKind, Supervision, Vocabulary, match
from oncofed.data.layouts.base import first_free
from oncofed.data.layouts.slides import SLIDES_ALONE
from oncofed.data.manifest import Entry, Manifest, Task, read_manifest
from oncofed.data.patients import join, whole_patients
from oncofed.data.register import SOURCE_LINK, Progress, RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.data.stain.of_case import with_slides_colours
from oncofed.data.targets import declared_target
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec
from oncofed.prediction.inputs import HIDDEN_FOLDER, PredictionInput, resolve_inputs
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.permissions import make_private
from oncofed.prediction.stale import RefusedImages

# Dataset folders whose images were converted from DICOM, or linked.
_MADE_OF_DICOM = {"images", "slides"}
_READ_AT_ONCE = 4
_NAMES_FILE = "names.json"
_OF_MANIFEST = re.compile(r"[;,](?=[^;,]*dataset\.json)")  # start of the advice on that file


@dataclass(frozen=True)
class Source:
    """One case to predict.

    Attributes:
        name: unique; names the output files.
        case: its label is the reference if the job can use it, else 0, and so are its targets, else none.
        entry: facts from registration.
        series: DICOM files of the image by path; empty for other formats.
        labelled: whether the job can use its label.
    """

    name: str
    case: Case
    entry: Entry
    series: tuple[Path, ...] = ()
    labelled: bool = False


@dataclass(frozen=True)
class SetAside:
    """A case that is not predicted, and why."""

    name: str
    reason: str
    source: str = ""


@dataclass
class Sources:
    """Cases found in the inputs.

    Attributes:
        cases: cases that fit the job.
        set_aside: cases that do not, or cannot be read.
        notes: remarks on the inputs as a whole.
        refused: images without a case, by dataset.
        earlier: image path relative to the output folder -> its name, for images of earlier calls only.
    """

    cases: list[Source] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: list[RefusedImages] = field(default_factory=list)
    earlier: dict[str, str] = field(default_factory=dict)


def gather(
    inputs: Sequence[str | Path],
    out: Path,
    job: JobSpec,
    datasets: Path,
    only: Sequence[str] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Sources:
    """Return the cases that a job's model can read.

    Args:
        inputs: files, folders of any layout, DICOM, or registered datasets by name or folder.
        out: folder of the predictions, with a hidden folder for registered inputs.
        job: the model's job.
        datasets: folder of the registered datasets.
        only: patterns of case names; empty: all.
        workers: reader processes; None: one per core.
        progress: called with (step, number done, total).

    Raises:
        DataError: an input does not exist or holds no image.
        SpecError: an input lies in ``out``, or no case matches ``only``.
        OSError: the hidden folder is not writable.
    """
    sources, requirements = Sources(), _JobRequirements.by(job)
    refused = [
        _read(user_input, requirements, sources, workers, progress)
        for user_input in resolve_inputs(inputs, out, datasets)
    ]
    if job.data.stain.columns:
        cases = with_slides_colours([source.case for source in sources.cases])
        sources.cases = [replace(source, case=case) for source, case in zip(sources.cases, cases, strict=True)]
    errors = [error for error in refused if error]
    if errors and len(errors) == len(sources.set_aside) and not sources.cases:
        raise errors[0]
    return _only(_named(sources, out), only)


@dataclass(frozen=True)
class _JobRequirements:
    """What a job's model reads and learns from."""

    job: JobSpec
    label_kind: LabelKind
    kind: Task

    @classmethod
    def by(cls, job: JobSpec) -> _JobRequirements:
        task = job.plan().build_task()
        drawn = task.label_kind in ("mask", "boxes") or (task.label_kind, task.network_kind) == ("targets", "dense")
        kind: Task = "segmentation" if drawn else "classification"
        return cls(job, task.label_kind, "slides" if task.network_kind == "bag" or task.reads_slides else kind)

    @cached_property
    def supervision(self) -> Supervision:
        """What the job learns from."""
        return self.job.plan().supervision()

    def kind_of(self, source: Path) -> Task:
        """What an input is registered as: slides too may be segmented by a model of flat images."""
        flat_masks = self.label_kind == "mask" and self.job.data.dimensions == 2
        paths = source.rglob("*") if source.is_dir() else [source]
        if flat_masks and any(path.suffix.lower() in SLIDES_ALONE for path in paths):
            return "slides"
        return self.kind

    @property
    def tiles(self) -> TileSpec:
        """Tiling of slides; defaults as in registration."""
        usual, data = TileSpec(), self.job.data
        return TileSpec(data.patch[0], data.spacing[0] * 1000 if data.spacing else usual.mpp, usual.tissue, "none")


def _read(
    user_input: PredictionInput,
    requirements: _JobRequirements,
    sources: Sources,
    workers: int | None,
    progress: Progress | None,
) -> DataError | None:
    """Add the cases of one input.

    An input that cannot be read is set aside, and its error returned.
    """
    try:
        if user_input.dataset is None:
            _register(user_input, requirements, sources, workers, progress)
        else:
            _take(decided(read_manifest(user_input.dataset)), user_input.dataset, requirements, sources, user_input)
    except DataError as error:
        # Users do not know the hidden folder of links.
        shown = DataError(
            str(error).replace(str(user_input.source), user_input.name) if user_input.named else str(error)
        )
        sources.set_aside.append(SetAside(Path(user_input.name).name, str(shown), user_input.name))
        return shown
    return None


def _register(
    user_input: PredictionInput,
    requirements: _JobRequirements,
    sources: Sources,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Register and add the cases of files or a folder."""
    make_private(user_input.folder)
    request = RegisterOptions(
        user_input.source,
        "predict",
        user_input.folder,
        requirements.kind_of(user_input.source),
        tiles=requirements.tiles,
        workers=workers,
        classes=None if requirements.supervision.reads_masks else tuple(requirements.job.task.vocabulary.values()),
    )
    manifest = register(request, progress)
    if user_input.named:
        sources.set_aside += [SetAside(Path(path).name, reason, path) for path, reason in user_input.unused_files()]
    else:
        sources.notes += [f"left out, {n} of {user_input.name}: {why}" for why, n in by_weight(manifest.left_out)]
    _take(manifest, user_input.folder, requirements, sources, user_input)


def _take(
    manifest: Manifest, folder: Path, requirements: _JobRequirements, sources: Sources, user_input: PredictionInput
) -> None:
    """Add a dataset's cases."""
    vocabulary, notes = _labels(manifest, requirements, user_input)
    values = tuple(vocabulary.values.items()) if vocabulary and vocabulary.values is not None else None
    sources.notes += notes
    found, good, refused, series = [], list[Source](), list[Path](), image_files(folder)
    for entry in (*manifest.entries, *(Entry(image=path) for path in manifest.test if isinstance(path, str))):
        case = case_of(folder, manifest, entry, values)
        known: Case | None = case
        if vocabulary and requirements.label_kind in ("mask", "targets"):
            known = wanted_case(folder, manifest, entry, requirements.supervision, vocabulary, values)
        labelled = vocabulary is not None and known is not None
        found.append(Source(case.name, known or case, entry, _series(entry, folder, series), labelled))
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for source, reason in pool.map(lambda one: _checked(one, requirements), found):
            if reason:
                refused.append(source.case.image)
                sources.set_aside.append(SetAside(source.name, reason, source.entry.source or ""))
            else:
                good.append(source)
    sources.cases += _by_patient(good, requirements) if requirements.job.task.whole_patients else good
    sources.set_aside += [SetAside(bad.name, bad.reason, bad.source or "") for bad in manifest.quarantine]
    sources.refused.append(RefusedImages.of(folder, manifest, refused))


def _by_patient(sources: Sequence[Source], requirements: _JobRequirements) -> list[Source]:
    """Return the slides of each patient as one case; where they contradict one another, it has no label."""
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(source.case.patient, []).append(source)
    joined = []
    for own in found.values():
        data, classes = requirements.job.data, requirements.job.task.vocabulary
        labelled = [source for source in own if source.labelled]
        _, contradictory = whole_patients([source.case for source in labelled], data.covariates, classes)
        agree = bool(labelled) and not contradictory
        # A slide without a label takes no part in its patient's.
        label = labelled[0].case.label if agree else 0
        slides = [replace(source.case, label=label) for source in own]
        slides = slides if agree else [replace(slide, targets={}) for slide in slides]
        case = slides[0] if len(slides) == 1 else join(slides)
        entry = case.entry or own[0].entry
        series = tuple(path for source in own for path in source.series)
        joined.append(Source(case.name, case, entry, series, labelled=agree))
    return joined


def _series(entry: Entry, folder: Path, files: Mapping[str, list[str]]) -> tuple[Path, ...]:
    """Return an image's DICOM files; empty for other formats."""
    if entry.source is None or entry.images[0].partition("/")[0] not in _MADE_OF_DICOM:
        return ()
    # A file that holds several cases is the only file of each.
    return tuple(folder / SOURCE_LINK / path for path in files.get(entry.name or "", [entry.source]))


def _labels(
    manifest: Manifest, requirements: _JobRequirements, user_input: PredictionInput
) -> tuple[Vocabulary | None, list[str]]:
    """Return how labels map to the job's; None, with notes, where they are not used."""
    wanted = requirements.supervision
    try:
        for target in wanted.targets:
            declared_target(manifest.targets, manifest.labels, target)
        if not any(wanted.of_entry(manifest, entry) for entry in manifest.entries):
            return None, []
    except DataError as error:
        return None, [f"targets of {user_input.name} are not used: {error}"]
    vocabulary = match(manifest, wanted)
    if vocabulary.problems:
        why = vocabulary.problems[0]
        if user_input.dataset is None:  # its hidden dataset.json is rewritten by each call
            why = _OF_MANIFEST.split(why)[0]
        return None, [f"labels of {user_input.name} are not used: {why}"]
    return vocabulary, []


def _checked(source: Source, requirements: _JobRequirements) -> tuple[Source, str]:
    """Return a case with its facts, and any problem."""
    bare = replace(source.case, label=0, targets={}, target_fault="", mask_fault="")
    try:
        try:
            entry, labelled = known_facts(source.case), source.labelled
        except DataError:
            # Perhaps only the label is unreadable.
            entry, labelled = known_facts(bare), False
        entry = _with_checksum(source, entry)
    except Exception as error:  # noqa: BLE001 - one unreadable case must not stop the others
        return source, case_facts.reason_of(error)
    image = entry.model_copy(update={"label_problem": None, "label_values": None})
    faults = case_facts.image_faults(image)
    labelled = labelled and _is_usable(source.case, entry, requirements) and not case_facts.mask_faults(entry)
    entry = entry.model_copy(update={"notes": [*entry.notes, *_conversions(entry, requirements)]})
    data = requirements.job.data
    found = [*([] if entry.tiles else contract_faults(image, data)), *row_faults(entry, data.covariates), *faults]
    case = replace(source.case if labelled else bare, entry=entry)
    return replace(source, case=case, entry=entry, labelled=labelled), "; ".join(found)


def _conversions(entry: Entry, requirements: _JobRequirements) -> list[str]:
    """Return notes on conversions between grey and colour."""
    own, read = entry.channels or 1, len(requirements.job.data.channels)
    if entry.tiles or entry.features or requirements.job.data.dimensions != 2:
        return []
    if (own, read) == (3, 1):
        return ["is in colour, and the model reads grey: converted"]
    return ["is grey, and the model reads colour: its grey is in each channel"] if (own, read) == (1, 3) else []


def _with_checksum(source: Source, entry: Entry) -> Entry:
    """Return the facts with the current SHA-256."""
    if entry.checksum and entry is source.entry:  # as registered
        return entry
    return entry.model_copy(update={"checksum": case_facts.checksum(source.case.images)})


def _is_usable(case: Case, entry: Entry, requirements: _JobRequirements) -> bool:
    """Return whether the job can use the case's label."""
    if requirements.label_kind in ("mask", "boxes"):
        drawn = isinstance(entry.label, str) and not label_faults(case, entry, list(requirements.job.task.vocabulary))
        return drawn and not (case.target_fault or case.mask_fault)
    if requirements.label_kind == "targets":
        classes = list(requirements.supervision.classes)
        return bool(case.targets) and not (case.target_fault or (classes and label_faults(case, entry, classes)))
    known = isinstance(entry.label, int) and (case.label_values is None or entry.label in dict(case.label_values))
    return known and case.label in requirements.job.task.vocabulary


def _named(sources: Sources, out: Path) -> Sources:
    """Give each case a unique file name, stable across calls.

    Images of one name in two folders get a number, which stays with the image.
    """
    path = out / HIDDEN_FOLDER / _NAMES_FILE
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    taken = set(known.values())
    cases = []
    for source in sources.cases:
        key = os.path.relpath(source.case.image, out)
        if key not in known:
            known[key] = first_free(file_name(source.name), taken)
            taken.add(known[key])
        cases.append(replace(source, name=known[key]))
    make_private(path.parent)
    write_whole(path, json_text(known))
    now = {source.name for source in cases}
    return replace(sources, cases=cases, earlier={path: name for path, name in known.items() if name not in now})


def file_name(name: str) -> str:
    """Return a case's name as a safe file name.

    Manifests may hold any text.
    """
    safe = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name).strip(" .")
    return safe[:120] or "case"


def _only(sources: Sources, patterns: Sequence[str]) -> Sources:
    if not patterns:
        return sources

    def fits(*names: str) -> bool:
        return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in names)

    def names_of(source: Source) -> list[str]:
        return [source.name, source.entry.source or "", *(slide.name for slide in source.case.parts)]

    chosen = replace(
        sources,
        cases=[source for source in sources.cases if fits(*names_of(source))],
        set_aside=[bad for bad in sources.set_aside if fits(bad.name, bad.source)],
    )
    if not chosen.cases and not chosen.set_aside:
        names = [source.name for source in sources.cases][:3]
        raise SpecError(f"--only {' '.join(patterns)}: no case has such a name; there are {', '.join(names)} …")
    return chosen
