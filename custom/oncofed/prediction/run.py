"""From sources to a folder of predictions: case by case, each whole or not at all, and resumed where it was left.

A case is written into a hidden folder, which becomes ``cases/NAME`` once all of it is there: whoever reads that folder
finds a prediction with all its files, whatever ended the program that made it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import oncofed
from oncofed.data import case_facts
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.manifest import write_whole
from oncofed.data.prepared import PreparedCases, passing, prepare_one
from oncofed.errors import DataError, SpecError, TrainingError
from oncofed.prediction.dicom.acquired import acquired
from oncofed.prediction.dicom.named import series_said
from oncofed.prediction.inputs import HIDDEN_FOLDER
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.choice import chosen_outputs, outputs_of
from oncofed.prediction.outputs.classes import class_rows
from oncofed.prediction.outputs.figures import figures_of
from oncofed.prediction.outputs.tables import write_table
from oncofed.prediction.predicted import Predicted
from oncofed.prediction.private import FILE_OF_OWNER, keep_private
from oncofed.prediction.sources import SetAside, Source, Sources
from oncofed.prediction.stale import stale_names
from oncofed.prediction.trust.checks import TrustChecks
from oncofed.tasks.inferred import ClassScores

PREDICTIONS_FILE = "predictions.json"
SET_ASIDE_FILE = "set_aside.csv"
MEASUREMENTS_FILE = "measurements.csv"
CLASSES_FILE = "classes.csv"
CASES_FOLDER = "cases"
CASE_FILE = "case.json"
RESEARCH_ONLY = "Research only. Not a medical device: a person decides."
_SCHEMA = 1
_UNFINISHED = f"not finished: {CASES_FOLDER}/ may hold more than is listed; the same command goes on"
_LOCK_FILE = ".lock"

# Cases done, of how many.
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """How cases are predicted.

    Attributes:
        outputs: names of what is written; see ``outputs``.
        batch: images that go through the network at once, where its task takes whole images; None: as it scores.
        ensemble: let the run's other models predict too, where it kept them, and tell how far they differ.
        refuse_outside: leave images unlike those of the training to a person.
    """

    outputs: tuple[str, ...] = field(default_factory=chosen_outputs)
    batch: int | None = None
    ensemble: bool = True
    refuse_outside: bool = False


@dataclass
class Predictions:
    """What became of the sources.

    Attributes:
        folder: of all that was written.
        done: each case's record, those of earlier calls among them; see ``README.md``.
        made: names of those that were predicted now.
        kept: names of those that had been before.
        set_aside: what was not predicted, and why.
        notes: what was seen of the inputs as a whole.
    """

    folder: Path
    done: list[dict[str, Any]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def now(self) -> list[dict[str, Any]]:
        """Records of the cases of this call."""
        names = {*self.made, *self.kept}
        return [record for record in self.done if record["name"] in names]


def predict(
    model: TrainedModel,
    sources: Sources,
    out: Path,
    device: torch.device,
    options: Options | None = None,
    advance: Advance | None = None,
) -> Predictions:
    """Predict what was not predicted before, and write ``predictions.json`` and its tables.

    Args:
        model: that predicts.
        sources: see ``gather``.
        out: folder of the predictions.
        device: where the network computes.
        options: how.
        advance: called after each case.

    Raises:
        SpecError: the folder holds predictions of another model, or another process works in it.
        OSError: the folder cannot be written to; what was whole before is whole still.
    """
    options, advance = options or Options(), advance or (lambda done, total: None)
    with _alone_in(out):
        _clean(out)
        _require_same_model(out, model)
        found = Predictions(out, set_aside=list(sources.set_aside), notes=list(sources.notes))
        checks = TrustChecks(model, device, options.ensemble)
        settings = _settings(model, options, checks)
        _remove_refused(out, sources)
        if options.refuse_outside:
            sources = _without_outside(sources, checks, found)
        done = [_is_done(out, source, model, settings) for source in sources.cases]
        found.kept = [source.name for source, is_done in zip(sources.cases, done, strict=True) if is_done]
        todo = [source for source, is_done in zip(sources.cases, done, strict=True) if not is_done]
        advance(len(found.kept), len(sources.cases))
        _write_summary(found, model, settings, complete=False)
        aside = len(found.set_aside)
        try:
            for result in _written(_inferred(model, todo, device, options, checks), out, model, settings):
                if isinstance(result, SetAside):
                    found.set_aside.append(result)
                    _remove(out, result.name)
                else:
                    found.made.append(result.source.name)
                count = len(found.kept) + len(found.made) + len(found.set_aside) - aside
                advance(count, len(sources.cases))
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may have no room for that either
                _write_summary(found, model, settings, complete=False)
            raise
        _write_summary(found, model, settings, complete=True)
    return found


def _written(
    results: Iterator[Predicted | SetAside], out: Path, model: TrainedModel, settings: dict[str, Any]
) -> Iterator[Predicted | SetAside]:
    """Yield results once they are written: one is, while the network looks at the next."""
    with ThreadPoolExecutor(1, "write") as pool:
        under_way: tuple[Predicted, Future[None]] | None = None
        for result in results:
            if isinstance(result, SetAside):
                yield result
                continue
            if under_way:
                under_way[1].result()
                yield under_way[0]
            under_way = result, pool.submit(_write_case, out, result, model, settings)
        if under_way:
            under_way[1].result()
            yield under_way[0]


def _inferred(
    model: TrainedModel, sources: Sequence[Source], device: torch.device, options: Options, checks: TrustChecks
) -> Iterator[Predicted | SetAside]:
    """Yield what a model says of each case, or why it says nothing; the next cases are read meanwhile."""
    if not sources:
        return
    task, network = model.task, model.network(device)
    how = task.inference_preparation()
    at_once = options.batch or task.cases_at_once
    with contextlib.ExitStack() as held:
        read = _reading_ahead(sources, how, device, held)
        for begun in range(0, len(sources), at_once):
            few = sources[begun : begun + at_once]
            prepared = list(zip(few, read(few, sources[begun : begun + 2 * at_once]), strict=True))
            good = [(source, one) for source, one in prepared if not isinstance(one, str)]
            yield from (SetAside(s.name, one, s.entry.source or "") for s, one in prepared if isinstance(one, str))
            if good:
                yield from _looked_at(model, network, good, device, checks)


def _without_outside(sources: Sources, checks: TrustChecks, found: Predictions) -> Sources:
    """Set images aside that are unlike those of the training; what an earlier call predicted of them is removed."""
    inside = []
    for source in sources.cases:
        reasons, _ = checks.before(source)
        if reasons:
            why = "; ".join(reason.words for reason in reasons)
            found.set_aside.append(SetAside(source.name, f"left to a person: {why}", source.entry.source or ""))
            _remove(found.folder, source.name)
        else:
            inside.append(source)
    return replace(sources, cases=inside)


def _looked_at(
    model: TrainedModel,
    network: nn.Module,
    cases: Sequence[tuple[Source, Prepared]],
    device: torch.device,
    checks: TrustChecks,
) -> Iterator[Predicted | SetAside]:
    try:
        found = model.task.infer_all(network, [prepared for _, prepared in cases], device, entropy=True)
    except TrainingError as error:  # of cases at once, memory was too short for one: which one is found out
        if len(cases) == 1:
            yield SetAside(cases[0][0].name, str(error), cases[0][0].entry.source or "")
            return
        for case in cases:
            yield from _looked_at(model, network, [case], device, checks)
        return
    for (source, prepared), said in zip(cases, found, strict=True):
        one = acquired(said, source)
        likely = one.probabilities(model.task.temperature) if isinstance(one, ClassScores) else None
        trust = checks.after(source, prepared, one, likely)
        temperature = None if likely is None else model.temperature
        yield Predicted(source, one, likely, trust, temperature, network)


def _reading_ahead(
    sources: Sequence[Source], how: Preparation, device: torch.device, held: contextlib.ExitStack
) -> Callable[[Sequence[Source], Sequence[Source]], list[Prepared | str]]:
    """Return what gives some prepared cases, or why each cannot be read, and has the next ones read meanwhile."""
    ahead: PreparedCases | None = None
    if not how.costly:  # which would prepare all before the first is used
        cases = [source.case for source in sources]
        ahead = PreparedCases(cases, how, device, plan=passing(cases))
        held.callback(ahead.close)

    def one(source: Source) -> Prepared | str:
        try:
            return ahead.of(source.case) if ahead else prepare_one(source.case, how)
        except Exception as error:  # noqa: BLE001 - one case that cannot be read does not keep the others from it
            return case_facts.reason_of(error).removeprefix(f"{source.case.name}: ")

    def read(few: Sequence[Source], upcoming: Sequence[Source]) -> list[Prepared | str]:
        if ahead:
            ahead.ahead_of([source.case for source in upcoming])
        return [one(source) for source in few]

    return read


# --- what is there


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder of predictions.

    Raises:
        SpecError: another one does.
    """
    hidden = out / HIDDEN_FOLDER
    keep_private(hidden)
    keep_private(out / CASES_FOLDER)
    with (hidden / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(
                f"{out}: another oncofed predict works in it. Wait for its end, or name another --out"
            ) from None
        except OSError:  # a network drive without locks
            pass
        yield


def _clean(out: Path) -> None:
    """Remove what a process that was killed left unfinished."""
    for path in (out / CASES_FOLDER).glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove_refused(out: Path, sources: Sources) -> None:
    """Remove what earlier calls predicted of images that are set aside now."""
    paths = {path.parent.name: path for path in (out / CASES_FOLDER).glob(f"*/{CASE_FILE}")}
    records = {name: str((_read_record(path) or {}).get("source", "")) for name, path in paths.items()}
    for name in stale_names(sources.refused, sources.earlier, records, out):
        _remove(out, name)


def _remove(out: Path, name: str) -> None:
    shutil.rmtree(out / CASES_FOLDER / name, ignore_errors=True)


def _require_same_model(out: Path, model: TrainedModel) -> None:
    for path in (out / CASES_FOLDER).glob(f"*/{CASE_FILE}"):
        known = _read_record(path)
        if known and known["model"] != model.digest:
            raise SpecError(
                f"{out}: holds predictions of another model ({str(known['model'])[:12]}…; this one is "
                f"{model.digest[:12]}…). Name another --out"
            )


def _settings(model: TrainedModel, options: Options, checks: TrustChecks) -> dict[str, Any]:
    """Return all that a case's files follow from beside its image and the model's weights."""
    return {
        "oncofed": oncofed.__version__,
        "job": model.job.name,
        "task": model.job.task.model_dump(mode="json"),
        "outputs": list(options.outputs),
        "members": list(checks.members),
        "temperature": model.temperature,
    }


def _is_done(out: Path, source: Source, model: TrainedModel, settings: dict[str, Any]) -> bool:
    folder = out / CASES_FOLDER / source.name
    known = _read_record(folder / CASE_FILE)
    if known is None:
        return False
    same = (known["model"], known["settings"], known["checksum"]) == (model.digest, settings, source.entry.checksum)
    return same and all((folder / name).is_file() for names in known["files"].values() for name in names)


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return what was written of a case; None where nothing was, or not by this version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("schema") == _SCHEMA else None


# --- writing


def _write_case(out: Path, predicted: Predicted, model: TrainedModel, settings: dict[str, Any]) -> None:
    """Write a case's folder, whole or not at all."""
    source = predicted.source
    predicted = replace(predicted, figures=figures_of(predicted, model))  # once, for the record and its writers
    cases = out / CASES_FOLDER
    unfinished, before = cases / f".{source.name}.unfinished", cases / f".{source.name}.before"
    unfinished.mkdir(parents=True)
    try:
        files, missing = _files(predicted, model, unfinished, settings["outputs"])
        record = {
            "schema": _SCHEMA,
            "name": source.name,
            "source": source.entry.source or str(source.case.image),
            "series": series_said(source.series),
            "checksum": source.entry.checksum,
            "model": model.digest,
            "settings": settings,
            "research_only": RESEARCH_ONLY,
            "files": files,
            "missing": missing,
            "figures": figures_of(predicted, model),
            "notes": list(source.entry.notes),
            "trust": predicted.trust.to_json() if predicted.trust else None,
        }
        write_whole(unfinished / CASE_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        _settle(unfinished)
        if (cases / source.name).exists():
            (cases / source.name).replace(before)
        unfinished.replace(cases / source.name)
    finally:
        for path in (unfinished, before):
            shutil.rmtree(path, ignore_errors=True)


def _files(
    predicted: Predicted, model: TrainedModel, folder: Path, chosen: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return names of the files that were written, by output, and why an output could not be."""
    files: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for output in outputs_of(predicted.found, chosen):
        if output.of_dicom and not predicted.source.series:
            continue
        try:
            files[output.name] = [path.name for path in output.write(predicted, model, folder)]
        except DataError as error:  # the image does not allow it; what else is known of the case stands
            missing[output.name] = str(error)
    return files, missing


def _settle(folder: Path) -> None:
    """Have a folder's files on the disk before the folder gets its name: a power cut leaves none that is empty."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _write_summary(found: Predictions, model: TrainedModel, settings: dict[str, Any], complete: bool) -> None:
    """Write ``predictions.json`` and, once all is there, its tables."""
    out = found.folder
    records = [_read_record(path) for path in sorted((out / CASES_FOLDER).glob(f"*/{CASE_FILE}"))]
    found.done = [record for record in records if record is not None]
    own = {"schema", "model", "settings", "research_only"}
    values = {
        "schema": _SCHEMA,
        "complete": complete,
        "research_only": RESEARCH_ONLY,
        "model": {"digest": model.digest, "folder": str(model.folder), "provenance": dict(model.provenance)},
        "job": {"name": model.job.name, "title": model.job.title, "classes": model.task.classes},
        "settings": settings,
        "cases": [
            {"folder": f"{CASES_FOLDER}/{record['name']}", **{k: v for k, v in record.items() if k not in own}}
            for record in found.done
        ],
        "set_aside": [asdict(bad) for bad in found.set_aside],
        "notes": found.notes if complete else [*found.notes, _UNFINISHED],
    }
    write_whole(out / PREDICTIONS_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n", FILE_OF_OWNER)
    if complete:
        aside = [asdict(bad) for bad in found.set_aside]
        write_table(out / SET_ASIDE_FILE, aside, ("name", "reason", "source"))
        rows = [
            {"case": r["name"], **row, "trust": (r["trust"] or {}).get("verdict"), "source": source_said(r)}
            for r in found.done
            for row in r["figures"]
        ]
        write_table(out / MEASUREMENTS_FILE, rows, ("case", "value", "name"))
        if classes := class_rows(found.done):
            write_table(out / CLASSES_FILE, classes, ("case", "value", "name"))


def source_said(record: Mapping[str, Any]) -> str:
    """Return where a case comes from, of DICOM with the series as people know it."""
    return ", ".join(part for part in (record.get("series"), str(record["source"])) if part)
