"""Results of a prediction run, and their summary files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.classes import class_rows
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.tables import write_table
from oncofed.prediction.outputs.targets import target_table
from oncofed.prediction.results_folder import CASES_FOLDER, RESEARCH_ONLY, SCHEMA, Record, ResultsFolder
from oncofed.prediction.sources import SetAside
from oncofed.private_files import write_private

PREDICTIONS_FILE = "predictions.json"
SET_ASIDE_FILE = "set_aside.csv"
MEASUREMENTS_FILE = "measurements.csv"
CLASSES_FILE = "classes.csv"
TARGETS_FILE = "targets.csv"
_UNFINISHED = f"not finished: {CASES_FOLDER}/ may hold more than is listed; the same command goes on"


@dataclass
class Predictions:
    """Results of a prediction run.

    Attributes:
        folder: of all files.
        done: record of each predicted case, including earlier calls; see ``README.md``.
        made: names of the cases predicted by this call.
        kept: names of the cases predicted by earlier calls.
        set_aside: cases that were not predicted, and why.
        notes: remarks on the inputs as a whole.
    """

    folder: Path
    done: list[Record] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def now(self) -> list[Record]:
        """Records of this call's cases."""
        names = {*self.made, *self.kept}
        return [record for record in self.done if record["name"] in names]

    def write_summary(self, model: TrainedModel, settings: Mapping[str, Any], complete: bool) -> None:
        """Write ``predictions.json`` and, once complete, the tables."""
        self.done = ResultsFolder(self.folder).records()
        summary = json_text(self._summary(model, settings, complete))
        write_private(self.folder / PREDICTIONS_FILE, summary.encode())
        if complete:
            self._write_tables()

    def _summary(self, model: TrainedModel, settings: Mapping[str, Any], complete: bool) -> dict[str, Any]:
        shared = {"schema", "model", "settings", "research_only"}
        return {
            "schema": SCHEMA,
            "complete": complete,
            "research_only": RESEARCH_ONLY,
            "model": {"digest": model.digest, "folder": str(model.folder), "provenance": dict(model.provenance)},
            "job": {"name": model.job.name, "title": model.job.title, "classes": model.task.classes},
            "settings": settings,
            "cases": [
                {"folder": f"{CASES_FOLDER}/{record['name']}", **{k: v for k, v in record.items() if k not in shared}}
                for record in self.done
            ],
            "set_aside": [asdict(bad) for bad in self.set_aside],
            "notes": self.notes if complete else [*self.notes, _UNFINISHED],
        }

    def _write_tables(self) -> None:
        aside = [asdict(bad) for bad in self.set_aside]
        write_table(self.folder / SET_ASIDE_FILE, aside, ("name", "reason", "source"))
        rows = [
            {"case": r["name"], **row, "trust": (r["trust"] or {}).get("verdict"), "source": describe_source(r)}
            for r in self.done
            for row in r["figures"]
        ]
        first = ("case", "target", "name") if any("target" in row for row in rows) else ("case", "value", "name")
        write_table(self.folder / MEASUREMENTS_FILE, rows, first)
        if classes := class_rows(self.done):
            write_table(self.folder / CLASSES_FILE, classes, ("case", "value", "name"))
        if targets := target_table(self.done):
            write_table(self.folder / TARGETS_FILE, targets, ("case",))


def describe_source(record: Mapping[str, Any]) -> str:
    """Return a case's origin: DICOM series and path."""
    return ", ".join(part for part in (record.get("series"), str(record["source"])) if part)
