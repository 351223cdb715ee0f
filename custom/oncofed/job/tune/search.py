"""Searches a job's settings."""

from __future__ import annotations

import hashlib
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from oncofed.atomic import write_whole
from oncofed.errors import DataError, FederationError, OncofedError, SpecError
from oncofed.job.checks import check_strategy
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec
from oncofed.job.tune.record import BEST_JOB, Record, Row, Searched, read_record
from oncofed.job.tune.space import Space, shown
from oncofed.job.tune.study import Drawn, Pruner, Study
from oncofed.job.tune.trials import Trials
from oncofed.locking import require_locks, sole_process
from oncofed.report.result import Result, read_result
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER
from oncofed.rounds.selection import selected_score

# A search whose first trials all fail would only fail on.
_MOST_FAILED = 3


@dataclass
class Search:
    """A search for a job's settings.

    Trials are compared by validation scores alone, round by round. Test cases are looked at once, at the end, with the
    best trial's model.

    Attributes:
        spec: the job.
        space: the settings to try.
        trials: where they run.
        budget: number of trials, those ended early and failed ones included.
        folder: of the search; one of the same search goes on.
        console: where progress is shown.
        pruner: which trials end early: "median": those below the median of the others' at a round; "hyperband";
            "none".
    """

    spec: JobSpec
    space: Space
    trials: Trials
    budget: int
    folder: Path
    console: Console
    pruner: Pruner = "median"

    def execute(self) -> Record:
        """Run the trials that are missing, then test the best model.

        Raises:
            SpecError: the job cannot be searched, or the folder holds something else.
            FederationError: no trial came to its end.
        """
        require_searchable(self.spec)
        self.folder.mkdir(parents=True, exist_ok=True)
        require_locks(self.folder, "Name a folder on a disk of this machine with --out.")
        busy = SpecError(f"{self.folder}: another process searches here. Wait for it, or name another --out.")
        with sole_process(self.folder / "tune.lock", busy):
            record = self._record()
            study = Study(
                self.space,
                self.space.own_values(self.spec),
                rounds=self.spec.rounds.number,
                pruner=self.pruner,
                seed=self.spec.seed,
            )
            while (drawn := study.next(record.rows, self.budget)) is not None:
                self._run(record, drawn)
            self._test(record)
            return record

    def _record(self) -> Record:
        """Return the record of the same search, or a new one."""
        model = self.trials.model
        searched = Searched(
            job=self.spec.model_dump(mode="json", by_alias=True),
            space=str(self.space),
            pruner=self.pruner,
            sites=self.trials.sites_by_name(),
            model=hashlib.sha256(model.read_bytes()).hexdigest() if model else None,
        )
        record = read_record(self.folder, searched)
        if record is None:
            metric = self.spec.plan().build_task().metric_name
            record = Record(searched=searched, metric_name=metric, budget=self.budget)
        record.budget = self.budget
        return record

    def _run(self, record: Record, drawn: Drawn) -> None:
        """Run one trial to its end, or until it is not worth to go on."""
        number = len(record.rows) + 1
        settings = ", ".join(f"{name} {shown(value)}" for name, value in drawn.values.items())
        self.console.rule(f"trial {number} of {self.budget}: {settings}", align="left")
        started, rule = time.monotonic(), self.spec.evaluation.select
        scores: dict[int, float] = {}

        def watch(state: RunProgress) -> bool:
            scores.update(scores_by_round(state, rule))
            return drawn.report(scores)

        def begin(name: str) -> None:
            record.begun = name
            record.write(self.folder)

        why, complete = "", False
        try:
            spec = self.space.changed(self.spec, drawn.values)
            check_strategy(spec, spec.plan().build_network())
            complete = self.trials.run(spec, self._folder_of(number), record.begun, begin, watch)
        except DataError:
            raise
        except OncofedError as error:
            why = str(error)
        best_round = _best_round(scores, rule)
        if complete and best_round is None:
            why = "no site has a validation score"
        row = Row(
            trial=number,
            settings=drawn.values,
            state="failed" if why else "complete" if complete else "pruned",
            score=None if best_round is None else scores[best_round],
            best_round=best_round,
            scores=scores,
            seconds=round(time.monotonic() - started, 1),
            why=why,
            draw=drawn.draw,
        )
        self._keep(record, row)
        if number == _MOST_FAILED and all(row.state == "failed" for row in record.rows):
            raise FederationError(f"the first {_MOST_FAILED} trials failed: {why}. Logs: {self.folder}")

    def _keep(self, record: Record, row: Row) -> None:
        """Keep a trial and the best job so far, drop the models of other trials, and say how it ended."""
        record.rows.append(row)
        record.begun = None
        if row.settings == self.space.own_values(self.spec):
            record.own = row.trial
        best = record.best
        if best:
            write_whole(self.folder / BEST_JOB, self.space.changed(self.spec, best.settings).to_yaml())
        record.write(self.folder)
        for other in record.rows:
            if other is not best:
                shutil.rmtree(self._folder_of(other.trial) / MODELS_FOLDER, ignore_errors=True)
        outcome = {
            "complete": f"{shown(row.score)} in round {row.best_round}",
            "pruned": f"ended early after round {row.rounds}, {shown(row.score)}",
            "failed": f"failed: {row.why}",
        }[row.state]
        leader = f"; best {shown(best.score)} of trial {best.trial}" if best else ""
        left = (self.budget - row.trial) * statistics.fmean(row.seconds for row in record.rows)
        rest = f"; about {left / 60:.0f} min left" if left >= 60 else ""
        line = f"trial {row.trial}: {outcome}{leader}{rest}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"trial-{number:03d}"

    def _test(self, record: Record) -> None:
        """Score the best trial's model on test cases, once."""
        best = record.best
        if best is None:
            raise FederationError(f"no trial came to its end with a score. Logs: {self.folder}")
        folder = self.folder / f"test-of-trial-{best.trial:03d}"
        tested = _earlier(folder)
        if tested is None:
            spec = self.space.changed(self.spec, best.settings)
            self.console.rule(f"trial {best.trial} on test patients", align="left")
            tested = self.trials.test(spec, self._folder_of(best.trial) / MODELS_FOLDER / BEST_MODEL, folder)
        record.test = tested.mean.federated
        record.test_sites = {name: site.federated for name, site in sorted(tested.sites.items())}
        record.write(self.folder)


def require_searchable(spec: JobSpec) -> None:
    """Refuse a job whose trials would spend patients' privacy.

    Raises:
        SpecError: says why, and what to do.
    """
    if spec.privacy.differential_privacy:
        raise SpecError(
            f"{spec.name} has differential privacy: each trial would be charged to every training patient's budget, "
            "and the choice among trials is not private. Search without the section "
            "privacy.differential_privacy on data that may be used so, and run the private job with what is found"
        )


def scores_by_round(state: RunProgress, rule: str) -> dict[int, float]:
    """Return validation scores of the models after each round, by the job's rule.

    Args:
        state: of the run.
        rule: ``evaluation.select``.
    """
    found = {}
    for number, by_site in state.validation_by_site.items():
        known = {site: score for site, score in by_site.items() if score is not None}
        score = selected_score(rule, known, state.cases) if known else state.validation.get(number)
        if number and score is not None and math.isfinite(score):
            found[number] = score
    return found


def _best_round(scores: Mapping[int, float], rule: str) -> int | None:
    choose: Callable[[int], float] = float if rule == "last" else lambda number: scores[number]
    return max(sorted(scores), key=choose, default=None)


def _earlier(folder: Path) -> Result | None:
    """Return a complete result of an earlier process, if any."""
    if not (folder / "result.json").is_file():
        return None
    result = read_result(folder)
    return result if result.status == "completed" else None
