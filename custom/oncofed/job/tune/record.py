"""``tune.json``: the trials of a search, by which it goes on."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from typing_extensions import Self

from oncofed.atomic import write_whole
from oncofed.errors import SpecError
from oncofed.job.tune.space import Value
from oncofed.settings import first_problem

RECORD_FILE, TABLE_FILE, BEST_JOB = "tune.json", "trials.csv", "best.yaml"
_COLUMNS = ("state", "score", "best_round", "rounds", "seconds", "why")
_LONGEST = 80


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Part):
    """One trial.

    Attributes:
        trial: its number, from 1.
        settings: value by name of the setting.
        state: "pruned" where it was ended early.
        score: on validation patients, by the job's rule (evaluation.select); None: it failed, ended early, or has none.
        best_round: whose model has that score.
        scores: by round; those that are numbers.
        seconds: wall time.
        why: it failed.
        draw: number of the draw that its settings come from.
    """

    trial: int
    settings: dict[str, Value]
    state: Literal["complete", "pruned", "failed"]
    score: float | None = None
    best_round: int | None = None
    scores: dict[int, float] = {}
    seconds: float = 0.0
    why: str = ""
    draw: int = 0

    @field_validator("score")
    @classmethod
    def _is_a_number(cls, score: float | None) -> float | None:
        return score if score is not None and math.isfinite(score) else None

    @field_validator("scores", mode="before")
    @classmethod
    def _are_numbers(cls, scores: dict[Any, float | None]) -> dict[Any, float]:
        # JSON has null for what is no number.
        return {turn: score for turn, score in scores.items() if score is not None and math.isfinite(score)}

    @model_validator(mode="after")
    def _is_complete_with_a_score(self) -> Self:
        if self.state == "complete" and self.score is None:
            self.state, self.why = "failed", "no site has a validation score"
        return self

    @property
    def rounds(self) -> int:
        """Rounds whose models were scored."""
        return len(self.scores)


def _score(row: Row) -> float:
    return -math.inf if row.score is None else row.score


class Searched(_Part):
    """What a search is: it goes on with no other.

    Attributes:
        job: with all of its settings.
        space: the settings to try and their values, as --over has them.
        pruner: which trials end early.
        sites: folder by site; None: those of an alliance.
        model: SHA-256 of the file of weights that trials start from; None: they start from the seed's.
    """

    job: dict[str, Any]
    space: str
    pruner: str
    sites: dict[str, str] | None
    model: str | None = None


class Record(_Part):
    """Content of ``tune.json``.

    Attributes:
        searched: what the search is.
        metric_name: of the scores.
        budget: trials of the search.
        own: number of the trial with the job's own settings; None: there is none.
        test: mean over the sites of the best trial's model on test patients, who had no part in the choice.
        test_sites: the same by site, where it may be told.
        begun: by which the trial that is under way is found again.
        rows: the trials in their order.
    """

    searched: Searched
    metric_name: str
    budget: int
    own: int | None = None
    test: float | None = None
    test_sites: dict[str, float | None] = {}
    begun: str | None = None
    rows: list[Row] = []

    @property
    def best(self) -> Row | None:
        """The trial with the best validation score of those that came to their end."""
        complete = [row for row in self.rows if row.state == "complete"]
        return max(complete, key=_score, default=None)

    @property
    def ranked(self) -> list[Row]:
        """Rows with the best score first: complete ones, then those ended early, then failed ones."""
        order = ("complete", "pruned", "failed")
        return sorted(self.rows, key=lambda row: (order.index(row.state), -_score(row)))

    def write(self, folder: Path) -> None:
        """Write the record, and its table as CSV."""
        write_whole(folder / RECORD_FILE, self.model_dump_json(indent=2) + "\n")
        write_whole(folder / TABLE_FILE, self._csv())

    def _csv(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row.settings))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["trial", *names, *_COLUMNS])
        for row in self.rows:
            values = [row.settings.get(name) for name in names] + [getattr(row, name) for name in _COLUMNS]
            table.writerow([row.trial, *values])
        return text.getvalue()


def read_record(folder: Path, searched: Searched) -> Record | None:
    """Return the record of the same search in a folder; None: there is none yet.

    Raises:
        SpecError: it is of another search, or cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        why = first_problem(error) if isinstance(error, ValidationError) else "no text"
        raise SpecError(f"{path}: no record of a search ({why}). Name another --out.") from None
    for name in Searched.model_fields:
        kept, here = getattr(record.searched, name), getattr(searched, name)
        if kept != here:
            raise SpecError(
                f"{folder} holds a search with another {name} ({_short(kept)}; here {_short(here)}). It goes on with "
                "what it began with; for another one name another --out."
            )
    return record


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
