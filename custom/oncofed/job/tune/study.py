"""Draws the settings of trials with Optuna, and ends those that are not worth to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from oncofed.errors import SpecError
from oncofed.job.tune.record import Row
from oncofed.job.tune.space import Setting, Space, Value

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import Trial, TrialState, create_trial
except ModuleNotFoundError as missing:
    raise SpecError(
        f"a search for settings is Optuna's, which is not installed here ({missing.name} is missing): pip install "
        "'oncofed[tune]'"
    ) from None

Pruner = Literal["median", "hyperband", "none"]

# Trials that run to their end before others are compared with them.
_BEFORE_PRUNING = 4
# The first score says little: it is of a learning rate that has barely warmed up.
_FIRST_PRUNED_ROUND = 2
# Draws without anything new after which nothing is left to try.
_MOST_REPEATED = 50
# Of draws, apart for each seed of a job.
_SEEDS = 1_000_003


class Drawn:
    """A trial's settings, and whether it is worth to go on.

    Args:
        trial: Optuna's.
        values: by name of the setting.
        draw: its number among all draws, from 0.
        rounds: of the trial.
    """

    def __init__(self, trial: Trial, values: dict[str, Value], draw: int, rounds: int) -> None:
        self.values, self.draw = values, draw
        self._trial, self._rounds = trial, rounds
        self._told: set[int] = set()
        self._is_worth_it = True

    def report(self, scores: Mapping[int, float]) -> bool:
        """Take validation scores by round; return whether the trial is worth to go on."""
        for number in sorted(scores.keys() - self._told):
            self._told.add(number)
            self._trial.report(scores[number], number)
            # After its last round a trial costs nothing more.
            if number < self._rounds and self._trial.should_prune():
                self._is_worth_it = False
        return self._is_worth_it


class Study:
    """Draws trials by those before them.

    A trial's settings depend on the seed and the trials before it alone: a search that was ended and goes on tries what
    it would have tried.

    Args:
        space: of the settings.
        first: settings of the first trial; None: they are drawn, too.
        rounds: of a trial.
        pruner: that ends trials early.
        seed: of the draws.
    """

    def __init__(
        self, space: Space, first: Mapping[str, Value] | None, *, rounds: int, pruner: Pruner, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._first = space, first
        self._rounds, self._seed = rounds, seed
        self._pruner = _pruner(pruner, rounds)
        self._distributions = {setting.name: _distribution(setting) for setting in space.settings}

    def next(self, rows: Sequence[Row], budget: int) -> Drawn | None:
        """Return the next trial; None where the budget is spent or nothing new is left.

        Args:
            rows: the trials before it.
            budget: number of trials.
        """
        if len(rows) >= budget:
            return None
        tried = [row.settings for row in rows]
        draw = rows[-1].draw + 1 if rows else 0
        listed = next((values for values in self._listed(budget) if values not in tried), None)
        if listed is None and self._space.size <= budget:
            return None
        for number in range(draw, draw + _MOST_REPEATED):
            found = self._drawn(rows, number, listed)
            if found.values not in tried:
                return found
        return None

    def _listed(self, budget: int) -> Iterator[Mapping[str, Value]]:
        """Yield settings that are tried without a draw: the first ones, and all where they are few."""
        if self._first is not None:
            yield self._first
        if self._space.size <= budget:
            yield from self._space.combinations()

    def _drawn(self, rows: Sequence[Row], draw: int, listed: Mapping[str, Value] | None) -> Drawn:
        # A sampler of its own for each draw: one begun anew would draw again what it drew first.
        study = optuna.create_study(
            study_name="search",
            direction="maximize",
            pruner=self._pruner,
            sampler=optuna.samplers.TPESampler(seed=(self._seed * _SEEDS + draw) % 2**32),
        )
        for row in rows:
            study.add_trial(
                create_trial(
                    state={"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(
                        row.state, TrialState.FAIL
                    ),
                    value=row.score if row.state == "complete" else None,
                    params=row.settings,
                    distributions=self._distributions,
                    intermediate_values=row.scores,
                )
            )
        if listed is not None:
            study.enqueue_trial(dict(listed))
        trial = study.ask(self._distributions)
        return Drawn(trial, dict(trial.params), draw, self._rounds)


def _distribution(setting: Setting) -> BaseDistribution:
    if setting.choices:
        return CategoricalDistribution(setting.choices)
    if setting.is_integer:
        return IntDistribution(int(setting.low), int(setting.high), log=setting.is_log)
    return FloatDistribution(setting.low, setting.high, log=setting.is_log)


def _pruner(kind: Pruner, rounds: int) -> optuna.pruners.BasePruner:
    if kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING, n_warmup_steps=_FIRST_PRUNED_ROUND)
    if kind == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=_FIRST_PRUNED_ROUND, max_resource=max(rounds, 2))
    return optuna.pruners.NopPruner()
