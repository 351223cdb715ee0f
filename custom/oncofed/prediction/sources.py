"""What a model is to read: cases gathered from files, folders, DICOM or a registered dataset.

Whatever is no dataset yet is registered into a hidden folder, so that what training refuses is refused here too.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from oncofed.data import case_facts
from oncofed.data.accounts import by_weight
from oncofed.data.cases import Case, case_of, contract_faults, known_facts, label_faults
from oncofed.data.decisions import decided
from oncofed.data.files import image_files
from oncofed.data.label_mapping import LabelKind, match_classes, match_labels
from oncofed.data.layouts.base import first_free
from oncofed.data.manifest import Entry, Manifest, Task, read_manifest, write_whole
from oncofed.data.register import SOURCE_LINK, Progress, RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.errors import DataError, SpecError
from oncofed.job.spec import JobSpec
from oncofed.prediction.inputs import HIDDEN_FOLDER, Given, sort_inputs
from oncofed.prediction.private import make_private
from oncofed.prediction.stale import Refused

# Folders of a dataset in which images lie that registering made of DICOM, or linked.
_MADE_OF_DICOM = {"images", "slides"}
_READ_AT_ONCE = 4
_NAMES_FILE = "names.json"
_OF_MANIFEST = re.compile(r"[;,](?=[^;,]*dataset\.json)")  # where what to do with that file begins


@dataclass(frozen=True)
class Source:
    """One case to predict.

    Attributes:
        name: of the case, unique; names the output files.
        case: whose label is the reference where the dataset has one that the job can use, else 0.
        entry: what registering knows of it.
        series: DICOM files of the image, where it came from DICOM, in the order of their paths; else empty.
        labelled: the case has a label that the job can use.
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
    """What was found to predict.

    Attributes:
        cases: that fit the job.
        set_aside: that do not, or cannot be read.
        notes: what was seen of the inputs as a whole, for people.
        refused: what of the inputs became no case, by dataset.
        earlier: path of an image, from the folder of the predictions, -> its name there, of images that earlier calls
            read and this one does not.
    """

    cases: list[Source] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
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
    """Return what of some inputs a job's model can read.

    Args:
        inputs: files, folders of any layout, DICOM, or registered datasets by name or folder.
        out: where predictions go; what is registered lies in a hidden folder of it.
        job: of the model.
        datasets: folder of the datasets that are registered by name.
        only: patterns of names of cases; empty: all.
        workers: processes that read; None: one a core.
        progress: called with (what is done, how many, of how many).

    Raises:
        DataError: an input does not exist or holds no image.
        SpecError: an input lies in ``out``, or no case is named as ``only`` says.
        OSError: the hidden folder cannot be written to.
    """
    sources, wanted = Sources(), _Wanted.by(job)
    refused = [_read(given, wanted, sources, workers, progress) for given in sort_inputs(inputs, out, datasets)]
    errors = [error for error in refused if error]
    if errors and len(errors) == len(sources.set_aside) and not sources.cases:
        raise errors[0]
    return _only(_named(sources, out), only)


@dataclass(frozen=True)
class _Wanted:
    """What a job reads and learns from."""

    job: JobSpec
    label_kind: LabelKind
    kind: Task

    @classmethod
    def by(cls, job: JobSpec) -> _Wanted:
        task = job.plan().build_task()
        kind: Task = "segmentation" if task.label_kind == "mask" else "classification"
        return cls(job, task.label_kind, "slides" if task.network_kind == "bag" else kind)

    @property
    def tiles(self) -> TileSpec:
        """How slides are cut: as registering does where the job does not say."""
        usual, data = TileSpec(), self.job.data
        return TileSpec(data.patch[0], data.spacing[0] * 1000 if data.spacing else usual.mpp, usual.tissue)


def _read(
    given: Given, wanted: _Wanted, sources: Sources, workers: int | None, progress: Progress | None
) -> DataError | None:
    """Add the cases of one input; one that cannot be read at all is set aside, and its error returned."""
    try:
        if given.dataset is None:
            _register(given, wanted, sources, workers, progress)
        else:
            _take(decided(read_manifest(given.dataset)), given.dataset, wanted, sources, given)
    except DataError as error:
        # Whoever named files knows nothing of the folder that holds links to them.
        said = DataError(str(error).replace(str(given.source), given.name) if given.named else str(error))
        sources.set_aside.append(SetAside(Path(given.name).name, str(said), given.name))
        return said
    return None


def _register(given: Given, wanted: _Wanted, sources: Sources, workers: int | None, progress: Progress | None) -> None:
    """Add the cases of files or of a folder."""
    make_private(given.folder)
    request = RegisterOptions(
        given.source,
        "predict",
        given.folder,
        wanted.kind,
        tiles=wanted.tiles,
        workers=workers,
        classes=tuple(wanted.job.task.vocabulary.values()) if wanted.label_kind == "class" else None,
    )
    manifest = register(request, progress)
    if given.named:
        sources.set_aside += [SetAside(Path(path).name, reason, path) for path, reason in given.left_out()]
    else:
        sources.notes += [f"left out, {n} of {given.name}: {why}" for why, n in by_weight(manifest.left_out)]
    _take(manifest, given.folder, wanted, sources, given)


def _take(manifest: Manifest, folder: Path, wanted: _Wanted, sources: Sources, given: Given) -> None:
    """Add a dataset's cases."""
    values, labelled, notes = _labels(manifest, wanted, given)
    sources.notes += notes
    series = image_files(folder)
    found, refused = [], list[Path]()
    for entry in (*manifest.entries, *(Entry(image=path) for path in manifest.test if isinstance(path, str))):
        case = case_of(folder, manifest, entry, values)
        found.append(Source(case.name, case, entry, _series(entry, folder, series), labelled))
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for source, reason in pool.map(lambda one: _checked(one, wanted), found):
            if reason:
                refused.append(source.case.image)
                sources.set_aside.append(SetAside(source.name, reason, source.entry.source or ""))
            else:
                sources.cases.append(source)
    sources.set_aside += [SetAside(bad.name, bad.reason, bad.source or "") for bad in manifest.quarantine]
    sources.refused.append(Refused.of(folder, manifest, refused))


def _series(entry: Entry, folder: Path, files: Mapping[str, list[str]]) -> tuple[Path, ...]:
    """Return the DICOM files of an image; other images are reached through the link to their source."""
    if entry.source is None or entry.images[0].partition("/")[0] not in _MADE_OF_DICOM:
        return ()
    # A file of which several cases were made is the only one of each.
    return tuple(folder / SOURCE_LINK / path for path in files.get(entry.name or "", [entry.source]))


def _labels(
    manifest: Manifest, wanted: _Wanted, given: Given
) -> tuple[tuple[tuple[int, int], ...] | None, bool, list[str]]:
    """Return how a dataset's labels become the job's, whether they do, and why not."""
    match = match_classes if wanted.label_kind == "class" else match_labels
    if not any(entry.label is not None for entry in manifest.entries):
        return None, False, []
    vocabulary = match(manifest, wanted.job.task.vocabulary)
    if vocabulary.problems:
        why = vocabulary.problems[0]
        if given.dataset is None:  # whose dataset.json is hidden, and made anew each time
            why = _OF_MANIFEST.split(why)[0]
        return None, False, [f"labels of {given.name} are not used: {why}"]
    return tuple(vocabulary.values.items()) if vocabulary.values is not None else None, True, []


def _checked(source: Source, wanted: _Wanted) -> tuple[Source, str]:
    """Return a case with what is known of its image and of whether its label can be used, and why it is set aside."""
    bare = replace(source.case, label=0)
    try:
        try:
            entry, labelled = known_facts(source.case), source.labelled
        except DataError:
            # The label may be what cannot be read.
            entry, labelled = known_facts(bare), False
        entry = _with_checksum(source, entry)
    except Exception as error:  # noqa: BLE001 - one case that cannot be read does not keep the others from it
        return source, case_facts.reason_of(error)
    image = entry.model_copy(update={"label_problem": None, "label_values": None})
    faults = case_facts.faults(image)
    labelled = labelled and _is_usable(source.case, entry, wanted) and case_facts.faults(entry) == faults
    entry = entry.model_copy(update={"notes": [*entry.notes, *_conversions(entry, wanted)]})
    found = [*([] if entry.tiles else contract_faults(image, wanted.job.data)), *faults]
    case = replace(source.case if labelled else bare, entry=entry)
    return replace(source, case=case, entry=entry, labelled=labelled), "; ".join(found)


def _conversions(entry: Entry, wanted: _Wanted) -> list[str]:
    """Return what is to be said of an image whose grey or colour the job's model does not read."""
    own, read = entry.channels or 1, len(wanted.job.data.channels)
    if entry.tiles or wanted.job.data.dimensions != 2:
        return []
    if (own, read) == (3, 1):
        return ["is in colour, and the model reads grey: converted"]
    return ["is grey, and the model reads colour: its grey is in each channel"] if (own, read) == (1, 3) else []


def _with_checksum(source: Source, entry: Entry) -> Entry:
    """Return what is known of an image with the SHA-256 of its files as they are now."""
    if entry.checksum and entry is source.entry:  # as registered
        return entry
    return entry.model_copy(update={"checksum": case_facts.checksum(source.case.images)})


def _is_usable(case: Case, entry: Entry, wanted: _Wanted) -> bool:
    """Return whether a label is of the kind that a job learns from, and holds only its classes."""
    if wanted.label_kind == "mask":
        return isinstance(entry.label, str) and not label_faults(case, entry, list(wanted.job.task.vocabulary))
    known = isinstance(entry.label, int) and (case.label_values is None or entry.label in dict(case.label_values))
    return known and case.label in wanted.job.task.vocabulary


def _named(sources: Sources, out: Path) -> Sources:
    """Return sources by names that can name files, each its own and the same in every later call with the same ``out``.

    Images of one name in two folders are told apart by a number, which stays with the image.
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
    write_whole(path, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    now = {source.name for source in cases}
    return replace(sources, cases=cases, earlier={path: name for path, name in known.items() if name not in now})


def file_name(name: str) -> str:
    """Return a case's name as it can name a file in a folder of its own: a manifest may hold any text."""
    safe = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name).strip(" .")
    return safe[:120] or "case"


def _only(sources: Sources, patterns: Sequence[str]) -> Sources:
    if not patterns:
        return sources

    def fits(name: str, source: str | None) -> bool:
        return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (name, source or ""))

    chosen = replace(
        sources,
        cases=[source for source in sources.cases if fits(source.name, source.entry.source)],
        set_aside=[bad for bad in sources.set_aside if fits(bad.name, bad.source)],
    )
    if not chosen.cases and not chosen.set_aside:
        names = [source.name for source in sources.cases][:3]
        raise SpecError(f"--only {' '.join(patterns)}: no case has such a name; there are {', '.join(names)} …")
    return chosen
