"""A search: what is tried, kept, chosen, and how it goes on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from oncofed.errors import FederationError, SpecError
from oncofed.job.outcome import begin_result
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec, parse_job
from oncofed.job.tune.record import Record, Row
from oncofed.job.tune.search import Search, scores_by_round
from oncofed.job.tune.space import read_space
from oncofed.job.tune.study import Pruner
from oncofed.report.result import Result, SiteResult
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER, Validated

RATE = "learning_rate=1e-4..1e-1:log"


class Ended(BaseException):
    """The process is killed."""


@dataclass
class Formula:
    """Trials whose scores follow from the rate: the nearer to 0.003, the better, and better by round.

    The federation itself is tried in tests/cli/test_tune.py.

    Attributes:
        end_in: number of the trial run in whose second round the process ends.
        model: file of weights that they start from.
        ran: rates of the trials that ran, and rounds that each had.
        tested: rates whose model was tested.
    """

    end_in: int | None = None
    fails: Callable[[float], bool] = lambda rate: False
    undefined: Callable[[float], bool] = lambda rate: False
    model: Path | None = None
    ran: list[tuple[float, int]] = field(default_factory=list)
    tested: list[float] = field(default_factory=list)

    def sites_by_name(self) -> dict[str, str] | None:
        return {"east": "/data/east"}

    def run(
        self,
        spec: JobSpec,
        folder: Path,
        begun: str | None,
        begin: Callable[[str], None],
        watch: Callable[[RunProgress], bool],
    ) -> bool:
        rate, state = spec.training.learning_rate, RunProgress()
        self.ran.append((rate, 0))
        for number in range(spec.rounds.number + 1):
            if len(self.ran) == self.end_in and number == 2:
                raise Ended
            if self.fails(rate) and number == 1:
                raise FederationError("the loss is not finite")
            score = float("nan") if self.undefined(rate) else number / 10 / (1 + abs(rate - 0.003) * 100)
            state.apply(Validated(time=0.0, round=number, mean=score, sites={"east": score}))
            self.ran[-1] = (rate, number)
            if not watch(state):
                return False
        (folder / MODELS_FOLDER).mkdir(parents=True)
        (folder / MODELS_FOLDER / BEST_MODEL).write_text(str(rate))
        return True

    def test(self, spec: JobSpec, model: Path, folder: Path) -> Result:
        self.tested.append(float(model.read_text()))
        result = begin_result(spec, "simulate")
        result.status, result.mean.federated = "completed", 0.5
        result.sites["east"] = SiteResult(train_cases=9, validation_cases=9, test_cases=9, federated=0.5)
        folder.mkdir(parents=True)
        result.write(folder)
        return result


def search(
    spec: JobSpec, trials: Formula, folder: Path, budget: int, over: str = RATE, pruner: Pruner = "none"
) -> Record:
    told = Console(file=io.StringIO())
    return Search(spec, read_space(over, spec), trials, budget, folder, told, pruner).execute()


def test_the_best_by_validation_is_kept_and_tested_once(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula()
    found = search(spec, trials, tmp_path, 8)
    assert trials.ran[0] == (0.01, 2), "the job's own settings come first"
    assert found.own == 1
    rates = [rate for rate, _ in trials.ran]
    assert len(set(rates)) == 8
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    best = min(rates, key=lambda rate: abs(rate - 0.003))
    assert found.ranked[0].settings == {"training.learning_rate": best}
    assert found.best is found.ranked[0]
    assert found.best.trial == rates.index(best) + 1
    assert trials.tested == [best]
    assert (found.test, found.test_sites) == (0.5, {"east": 0.5})
    # The best job is one that runs, and the models of the others are gone.
    assert parse_job(tmp_path / "best.yaml").training.learning_rate == best
    assert [path.read_text() for path in tmp_path.rglob(BEST_MODEL)] == [str(best)]
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [float(row["training.learning_rate"]) for row in rows] == rates
    assert [float(row["score"]) for row in rows] == [row.score for row in found.rows]
    assert Record.model_validate_json((tmp_path / "tune.json").read_text()) == found


def test_a_score_that_is_no_number_is_not_the_best_and_the_search_goes_on(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula(undefined=lambda rate: rate == 0.01)
    first = search(spec, trials, tmp_path, 2)
    assert [row.state for row in first.rows] == ["failed", "complete"]
    assert first.best is first.rows[1]
    assert [row.trial for row in search(spec, trials, tmp_path, 3).rows] == [1, 2, 3]
    row = Row(trial=1, settings={"a": 1.0}, state="complete", score=float("nan"), scores={1: float("nan"), 2: 0.5})
    assert (row.state, row.score, row.scores) == ("failed", None, {2: 0.5})
    assert (
        Row.model_validate_json('{"trial": 1, "settings": {}, "state": "pruned", "scores": {"1": null}}').scores == {}
    )


@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
def test_a_search_that_was_killed_tries_what_it_would_have_tried(spec: JobSpec, tmp_path: Path, pruner: Pruner) -> None:
    spec = spec.with_rounds(5)
    whole, halves = Formula(), Formula(end_in=6)
    expected = search(spec, whole, tmp_path / "whole", 12, pruner=pruner)
    with pytest.raises(Ended):
        search(spec, halves, tmp_path / "halves", 12, pruner=pruner)
    assert len(json.loads((tmp_path / "halves" / "tune.json").read_text())["rows"]) == 5
    found = search(spec, halves, tmp_path / "halves", 12, pruner=pruner)
    assert [row.model_copy(update={"seconds": 0.0}) for row in found.rows] == [
        row.model_copy(update={"seconds": 0.0}) for row in expected.rows
    ]
    assert halves.ran[:5] + halves.ran[6:] == whole.ran, "of all trials, the one that was under way alone runs twice"
    assert halves.ran[5][0] == halves.ran[6][0]
    # Once more: nothing is left to do, and nothing is done twice.
    again = search(spec, halves, tmp_path / "halves", 12, pruner=pruner)
    assert (again, len(halves.ran), len(halves.tested)) == (found, 13, 1)


def test_a_larger_budget_goes_on(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula()
    few = search(spec, trials, tmp_path, 2)
    more = search(spec, trials, tmp_path, 5)
    assert more.rows[:2] == few.rows
    assert len(trials.ran) == 5


def test_trials_below_the_median_end_early(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula()
    found = search(spec.with_rounds(6), trials, tmp_path, 20, pruner="median")
    early = [row for row in found.rows if row.state == "pruned"]
    assert early
    assert all(2 <= row.rounds < 6 and row.score is not None for row in early)
    assert sum(rounds for _, rounds in trials.ran) < 20 * 6
    best = min((rate for rate, _ in trials.ran), key=lambda rate: abs(rate - 0.003))
    assert found.ranked[0].settings == {"training.learning_rate": best}
    assert all(row.state == "complete" for row in found.rows[:4]), "there is nothing to compare the first ones with"


def test_a_short_list_is_tried_once_each(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula()
    found = search(spec, trials, tmp_path, 50, "learning_rate=0.001|0.003|0.01,optimizer")
    assert len(found.rows) == len(trials.ran) == 6
    assert len({tuple(row.settings.items()) for row in found.rows}) == 6
    assert found.ranked[0].settings["training.learning_rate"] == 0.003


def test_no_combination_is_tried_twice_where_not_all_are(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula()
    found = search(spec, trials, tmp_path, 9, "learning_rate=0.001|0.003|0.01|0.03|0.1,optimizer")
    assert len(found.rows) == len(trials.ran) == 9
    assert len({tuple(row.settings.items()) for row in found.rows}) == 9


def test_a_failed_trial_is_one_of_the_table(spec: JobSpec, tmp_path: Path) -> None:
    trials = Formula(fails=lambda rate: rate > 0.02)
    found = search(spec, trials, tmp_path, 10)
    failed = [row for row in found.rows if row.state == "failed"]
    assert failed
    assert {row.why for row in failed} == {"the loss is not finite"}
    assert all(row.settings["training.learning_rate"] > 0.02 for row in failed)
    assert found.ranked[-len(failed) :] == failed
    with pytest.raises(FederationError, match="the first 3 trials failed: the loss is not finite"):
        search(spec, Formula(fails=lambda rate: True), tmp_path / "all", 10)


def test_settings_that_do_not_fit_together_are_a_failed_trial(spec: JobSpec, tmp_path: Path) -> None:
    found = search(spec, Formula(), tmp_path, 4, "quorum=1|2,sites_per_round=1|2")
    (failed,) = [row for row in found.rows if row.state == "failed"]
    assert failed.settings == {"rounds.quorum": 2, "rounds.sites_per_round": 1}
    assert "only 1 sites are asked" in failed.why


def test_another_search_is_not_mixed_in(spec: JobSpec, tmp_path: Path) -> None:
    search(spec, Formula(), tmp_path, 1)
    with pytest.raises(SpecError, match=r"holds a search with another space .*name another --out"):
        search(spec, Formula(), tmp_path, 1, "learning_rate=1e-3..1e-1:log")
    with pytest.raises(SpecError, match="holds a search with another job"):
        search(spec.with_seed(9), Formula(), tmp_path, 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tune.json").write_text("{}")
    with pytest.raises(SpecError, match="no record of a search"):
        search(spec, Formula(), tmp_path / "other", 1)


def test_a_search_goes_on_with_the_weights_it_began_with(spec: JobSpec, tmp_path: Path) -> None:
    one, other, same = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "same"))
    for file, content in ((one, b"1"), (other, b"2"), (same, b"1")):
        file.write_bytes(content)
    search(spec, Formula(model=one), tmp_path / "found", 1)
    assert len(search(spec, Formula(model=same), tmp_path / "found", 2).rows) == 2, "the content counts, not the place"
    for model in (other, None):
        with pytest.raises(SpecError, match=r"holds a search with another model .*name another --out"):
            search(spec, Formula(model=model), tmp_path / "found", 3)
    # A search that began before trials could start from a model goes on, too.
    search(spec, Formula(), tmp_path / "older", 1)
    record = json.loads((tmp_path / "older" / "tune.json").read_text())
    del record["searched"]["model"]
    (tmp_path / "older" / "tune.json").write_text(json.dumps(record))
    assert len(search(spec, Formula(), tmp_path / "older", 2).rows) == 2


def test_a_job_with_differential_privacy_is_refused(spec: JobSpec, tmp_path: Path) -> None:
    private = {"differential_privacy": {"delta": 1e-5, "sampling": 0.2, "epsilon": 8}}
    spec = spec.changed({"privacy": private, "model": {"norm": "group"}})
    trials = Formula()
    with pytest.raises(SpecError, match="each trial would be charged to every training patient's budget"):
        search(spec, trials, tmp_path / "search", 3)
    assert trials.ran == []
    assert not (tmp_path / "search").exists()


def test_scores_follow_the_jobs_rule() -> None:
    state = RunProgress(cases={"east": {"validation": 30}, "west": {"validation": 10}})
    state.apply(Validated(time=0.0, round=0, mean=0.1, sites={"east": 0.1, "west": 0.1}))
    state.apply(Validated(time=0.0, round=1, mean=0.6, sites={"east": 0.8, "west": 0.4}))
    state.apply(Validated(time=0.0, round=2, mean=None, sites={"east": None, "west": None}))
    assert scores_by_round(state, "mean") == {1: pytest.approx(0.6)}
    assert scores_by_round(state, "worst") == {1: 0.4}
    assert scores_by_round(state, "weighted") == {1: pytest.approx(0.7)}
    summed = RunProgress()
    summed.apply(Validated(time=0.0, round=1, mean=0.5, sites={}, summed={"mean": 0.5}))
    assert scores_by_round(summed, "mean") == {1: 0.5}
