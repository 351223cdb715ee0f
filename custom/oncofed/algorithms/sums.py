"""What secure aggregation asks of a job and its algorithm.

Server and sites follow the same rules, so that each site can tell whether its weight in the sum is its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from oncofed.algorithms.base import Algorithm, Update
from oncofed.algorithms.schedule import Synchronous
from oncofed.algorithms.settings import EvaluationSpec, ExchangeSpec, RoundsSpec
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import Ready
from oncofed.privacy.settings import SecureAggregationSpec
from oncofed.privacy.summed_scores import FACTOR as SCORES_FACTOR
from oncofed.settings import SettingError

_SECTION = "privacy.secure_aggregation"
# Begins the names of summands that all sites weigh alike, and what they are multiplied by to stay within the ring.
PLAIN, PLAIN_FACTOR = "extra.", 1 / 16
# Name of the scores in a round's sum, and its beginning where scores alone are summed.
SCORES = "@scores"
FACTORS = MappingProxyType({PLAIN: PLAIN_FACTOR, SCORES: SCORES_FACTOR})


def check_sums(
    algorithm: Algorithm[Any],
    spec: SecureAggregationSpec,
    rounds: RoundsSpec,
    evaluation: EvaluationSpec,
    exchange: ExchangeSpec,
) -> None:
    """Refuse what secure aggregation rules out.

    Raises:
        ValueError: names the setting to change.
    """
    name = algorithm.settings.name
    if not isinstance(algorithm.schedule, Synchronous):
        why = "sites do not train the same model at the same time, so that no sum of theirs can be formed"
        raise SettingError(f"found {name}, whose {why}: take fedavg, or leave {_SECTION} out", "strategy")
    if not algorithm.needs_only_sums:
        why = "compares single updates, which nobody sees under masks"
        raise SettingError(f"found {name}, which {why}: take fedavg, or leave {_SECTION} out", "strategy")
    if spec.scores == "summed":
        _check_summed_scores(evaluation)
    if evaluation.cross_site:
        why = "each site's own model would be scored at the others, and under masks nobody has it"
        raise SettingError(f"found true, but {why}: leave it out", "evaluation.cross_site")
    if exchange.update != "native":
        why = f"masked words cannot be rounded off any more: leave it out, and take {_SECTION}.bits: 16"
        raise SettingError(f"found {exchange.update}, but {why}", "exchange.update")
    for setting, found in (("quorum", rounds.quorum), ("sites_per_round", rounds.sites_per_round)):
        if found is not None and found < spec.minimum_sites:
            raise SettingError(
                f"found {found}, expected at least the {spec.minimum_sites} sites of a sum ({_SECTION})",
                f"rounds.{setting}",
            )


def _check_summed_scores(evaluation: EvaluationSpec) -> None:
    """Refuse what needs the scores of single sites."""
    why = f"which takes each site's own score, and under {_SECTION}.scores: summed the federation's mean alone is known"
    if evaluation.select == "worst":
        raise SettingError(f"found worst, {why}: take mean, weighted or last", "evaluation.select")
    if evaluation.margin is not None:
        raise SettingError(f"found {evaluation.margin:g}, {why}: leave it out", "evaluation.margin")


def bounded(cases: Mapping[str, int], factor: float) -> dict[str, int]:
    """Return the cases by which each site is weighted.

    A site that reports very many would determine the model alone.

    Args:
        cases: as each site reports them.
        factor: most times the median, the lower one of two in the middle.
    """
    if not cases:
        return {}
    most = max(int(factor * statistics.median_low(cases.values())), 1)
    return {site: min(count, most) for site, count in cases.items()}


def shares_in_sum(algorithm: Algorithm[Any], largest_weight: float, ready: Mapping[str, Ready]) -> dict[str, float]:
    """Return each site's share of the mean, by site.

    Args:
        algorithm: the job's; its state changes with ``select``.
        largest_weight: as ``ExchangeSpec.largest_weight``.
        ready: what the sites declare.
    """
    cases = bounded({site: one.cases for site, one in ready.items()}, largest_weight)
    updates = [Update(site, {}, cases[site], max(one.steps, 1), norm=one.norm) for site, one in sorted(ready.items())]
    total = sum(cases.values())
    _, shares = algorithm.select({}, updates, [update.cases / total for update in updates], len(updates))
    return {update.site: share for update, share in zip(updates, shares, strict=True)}


def summands(algorithm: Algorithm[Any], delta: Weights, extra: Weights, trained: Collection[str]) -> Weights:
    """Return what a site adds to the sum; names of ``FACTORS`` are not weighed by its share.

    Integers are not among it: counters follow from the steps, which are the same everywhere.

    Args:
        algorithm: the job's.
        delta: the site's update by name; tensors without values give the shapes of a sum.
        extra: its extra tensors.
        trained: names of the trained weights.
    """
    weighted = {name: value for name, value in delta.items() if value.is_floating_point()}
    plain = algorithm.summands(delta, extra, trained)
    return {**weighted, **{PLAIN + name: value for name, value in plain.items()}}


def scores_of(split: str) -> str:
    """Return the name of the scores in a sum of nothing else.

    Those of two splits may be the same numbers, which no site masks twice under one name.
    """
    return f"{SCORES}.{split}"


def update_of_sum(mean: Weights, model: Weights, ready: Sequence[Update]) -> Update:
    """Return the sum as the one update that an algorithm aggregates.

    Args:
        mean: by name, with the plain summands, each times ``PLAIN_FACTOR``.
        model: with which the sites began; gives the integers.
        ready: what those declared whose updates are in it.
    """
    steps = max(update.steps for update in ready)
    delta = {name: value for name, value in mean.items() if not name.startswith((PLAIN, SCORES))}
    delta |= {name: value + steps for name, value in model.items() if not value.is_floating_point()}
    extra = {n.removeprefix(PLAIN): v / PLAIN_FACTOR for n, v in mean.items() if n.startswith(PLAIN)}
    return Update("sum", delta, sum(update.cases for update in ready), steps=steps, extra=extra)


def other_integers(names: Collection[str]) -> list[str]:
    """Return those of a model's integers that are no counters of steps, sorted."""
    return sorted(name for name in names if not name.endswith("num_batches_tracked"))
