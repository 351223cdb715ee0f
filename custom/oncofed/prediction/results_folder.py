"""The folder of predictions: locking, case records, atomic case folders.

A case is written into a hidden folder, which becomes ``cases/NAME`` once complete. Readers of that folder always find a
prediction with all its files, however the program ended.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oncofed.atomic import flush_to_disk, write_whole
from oncofed.data.covariates import Covariate, stated
from oncofed.errors import DataError, SpecError
from oncofed.locking import sole_process
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.dicom.series_label import series_label
from oncofed.prediction.inputs import HIDDEN_FOLDER
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.case_rows import case_rows
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.registry import outputs_for
from oncofed.prediction.permissions import enforce_private, make_files_private
from oncofed.prediction.sources import Source, Sources
from oncofed.prediction.stale import stale_cases

CASES_FOLDER = "cases"
CASE_FILE = "case.json"
RESEARCH_ONLY = "Research only. Not a medical device: a person decides."
SCHEMA = 1
_LOCK_FILE = ".lock"

Record = dict[str, Any]


@dataclass(frozen=True)
class ResultsFolder:
    """A folder of predictions.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def cases(self) -> Path:
        """Parent of the cases' folders."""
        return self.path / CASES_FOLDER

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, and create it if missing.

        Raises:
            SpecError: another process holds the lock.
        """
        hidden = self.path / HIDDEN_FOLDER
        enforce_private(hidden)
        enforce_private(self.cases)
        busy = SpecError(f"{self.path}: another oncofed predict works in it. Wait for its end, or name another --out")
        with sole_process(hidden / _LOCK_FILE, busy):
            yield

    def clean(self) -> None:
        """Remove unfinished folders of a killed process."""
        for path in self.cases.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a case's prediction, if any."""
        shutil.rmtree(self.cases / name, ignore_errors=True)

    def remove_stale(self, sources: Sources) -> None:
        """Remove earlier predictions of images that are now set aside."""
        records = {path.parent.name: _read_record(path) or {} for path in self._record_files()}
        origins = {name: str(record.get("source", "")) for name, record in records.items()}
        for name in stale_cases(sources.refused, sources.earlier, origins, self.path):
            self.remove(name)

    def require_model(self, digest: str) -> None:
        """Check that existing predictions are of the same model.

        Raises:
            SpecError: they are of another one.
        """
        for record in self.records():
            if record["model"] != digest:
                raise SpecError(
                    f"{self.path}: holds predictions of another model ({str(record['model'])[:12]}…; this one is "
                    f"{digest[:12]}…). Name another --out"
                )

    def is_done(
        self, source: Source, digest: str, settings: Mapping[str, Any], columns: Sequence[Covariate] = ()
    ) -> bool:
        """Return whether a case is predicted with these settings, from the same row of a table.

        Args:
            source: the case.
            digest: of the model.
            settings: that determine a case's files.
            columns: of a table that the model reads.
        """
        folder = self.cases / source.name
        known = _read_record(folder / CASE_FILE)
        if known is None:
            return False
        same = (known["model"], known["settings"], known["checksum"]) == (digest, settings, source.entry.checksum)
        same = same and known.get("covariates", {}) == _row(source, columns)
        return same and all((folder / name).is_file() for names in known["files"].values() for name in names)

    def records(self) -> list[Record]:
        """Return the records of all predicted cases, by name."""
        records = (_read_record(path) for path in sorted(self._record_files()))
        return [record for record in records if record is not None]

    def write_case(self, prediction: CasePrediction, model: TrainedModel, settings: Mapping[str, Any]) -> None:
        """Write a case's folder atomically."""
        source = prediction.source
        prediction = replace(prediction, figures=case_rows(prediction, model))  # measured once for record and writers
        unfinished, before = self.cases / f".{source.name}.unfinished", self.cases / f".{source.name}.before"
        unfinished.mkdir(parents=True)
        try:
            files, missing = _write_outputs(prediction, model, unfinished, settings["outputs"])
            record = {
                "schema": SCHEMA,
                "name": source.name,
                "source": source.entry.source or str(source.case.image),
                "series": series_label(source.series),
                "checksum": source.entry.checksum,
                "model": model.digest,
                "settings": settings,
                "research_only": RESEARCH_ONLY,
                "files": files,
                "missing": missing,
                "figures": prediction.figures,
                "covariates": _row(source, model.job.data.covariates),
                "notes": list(source.entry.notes),
                "trust": prediction.trust.to_json() if prediction.trust else None,
            }
            write_whole(unfinished / CASE_FILE, json_text(record))
            make_files_private(unfinished)
            _flush(unfinished)
            if (self.cases / source.name).exists():
                (self.cases / source.name).replace(before)
            unfinished.replace(self.cases / source.name)
        finally:
            for path in (unfinished, before):
                shutil.rmtree(path, ignore_errors=True)

    def _record_files(self) -> Iterator[Path]:
        return self.cases.glob(f"*/{CASE_FILE}")


def _row(source: Source, columns: Sequence[Covariate]) -> dict[str, str]:
    """Return what a case states in each column; empty text where nothing."""
    return {column.name: stated(source.entry, column) for column in columns}


def _read_record(path: Path) -> Record | None:
    """Return a case's record; None: absent or another version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("schema") == SCHEMA else None


def _write_outputs(
    prediction: CasePrediction, model: TrainedModel, folder: Path, chosen: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Write a case's outputs; return files and failures."""
    files: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for output in outputs_for(prediction.found, chosen):
        if output.of_dicom and not prediction.source.series:
            continue
        try:
            files[output.name] = [path.name for path in output.write(prediction, model, folder)]
        except DataError as error:  # the image does not allow this output; the others are kept
            missing[output.name] = str(error)
    return files, missing


def _flush(folder: Path) -> None:
    """Flush a folder's files to disk.

    Done before the folder gets its name, so that a power cut leaves no empty files in it.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            flush_to_disk(path)
