"""Evaluations that may leave a site.

Figures of classes and further ones rest on at least five patients each.

No figure leaves where the task says so (``Task.may_leave``). Else a mean over all patients leaves as the site's policy
says, and one over some of them, such as those of a classifier's rarer class, where they are five. Together with it
another figure could reveal fewer patients than are behind either: then that figure stays, too.

A figure that depends on a threshold leaves for one model of a job, by the thresholds that it chose.

The mean of a job with targets is one of other figures. It is made of those that leave, and tells nothing beside them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oncofed.suppression import LEAST_PATIENTS, withheld_counts, withheld_groups
from oncofed.tasks import metrics_that_may_leave
from oncofed.tasks.metrics import Metric
from oncofed.tasks.parts import NO_PARTS, Parts, mixed_targets, told_parts
from oncofed.tasks.scores import Evaluation

# Further digits could carry hidden information.
DIGITS = 4
_MOST_CASES = 10_000_000


def evaluation_numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as it may leave a site.

    Means, their interval, and the numbers of cases and patients behind them.

    ``patients`` holds the number of patients (``all``), of those behind the mean (``mean``: for a classifier of two
    classes those of the rarer one; with targets the fewest behind one of its parts; 0 where they are not told), and of
    those behind each other reported figure.
    """
    if not evaluation.may_leave:
        return _without_figures({"cases": evaluation.cases, "patients": {"all": len(evaluation.patients), "mean": 0}})
    if evaluation.parts:
        return _told_of_parts(evaluation)
    behind = evaluation.behind
    groups = {name: set(behind[name]) for name in evaluation.by_class if behind.get(name)}
    mean = set[str]().union(*groups.values()) or set(evaluation.patients)
    if len(mean) < min(LEAST_PATIENTS, len(evaluation.patients)):
        return _without_figures({"cases": evaluation.cases, "patients": {"all": len(evaluation.patients), "mean": 0}})
    hidden = withheld_groups(groups, LEAST_PATIENTS)
    told = [name for name in evaluation.by_class if name in groups and name not in hidden]
    more = [
        name
        for name in evaluation.extra_metrics
        if len(behind.get(name, ())) >= LEAST_PATIENTS and name.partition(".")[2] in ("", *told)
    ]
    interval = evaluation.interval if len(mean) >= LEAST_PATIENTS else None
    return {
        "mean": None if evaluation.mean is None else round_figure(evaluation.mean),
        "by_class": _rounded({name: evaluation.by_class[name] for name in told}),
        "more": _rounded({name: evaluation.extra_metrics[name] for name in more}),
        "interval": [round_figure(end) for end in interval] if interval else None,
        "cases": evaluation.cases,
        "patients": {
            "all": len(evaluation.patients),
            "mean": len(mean),
            "by_class": {name: len(groups[name]) for name in told},
            "more": {name: len(behind[name]) for name in more},
        },
    }


def _told_of_parts(evaluation: Evaluation) -> dict[str, Any]:
    behind, everybody = evaluation.behind, len(evaluation.patients)
    counts = {name: len(behind.get(name, ())) for name in (*evaluation.by_class, *evaluation.extra_metrics)}
    mixed = mixed_targets(evaluation.parts, behind)
    numbers = {
        "by_class": _rounded({name: value for name, value in evaluation.by_class.items() if name not in mixed}),
        "more": _rounded(evaluation.extra_metrics),
        "interval": [round_figure(end) for end in evaluation.interval] if evaluation.interval and not mixed else None,
        "cases": evaluation.cases,
        "patients": {"all": everybody, "by_class": counts, "more": counts},
    }
    return _of_enough(numbers, evaluation.parts, LEAST_PATIENTS)


def _of_enough(numbers: Mapping[str, Any], parts: Parts, least: int) -> dict[str, Any]:
    """Return an evaluation of a job with targets without figures of few patients, and means of the others."""
    patients = numbers["patients"]
    everybody = patients["all"]
    told = told_parts(parts, numbers["by_class"], patients["by_class"], everybody, least)
    more = {
        name
        for name in numbers["more"]
        if name.partition(".")[2] in told.by_class
        and not withheld_counts(_of({name}, patients["more"]), everybody, least)
    }
    return {
        **numbers,
        "mean": None if told.mean is None else round_figure(told.mean),
        "by_class": _rounded(told.by_class),
        "more": _of(more, numbers["more"]),
        # Draws have the figures that are left out, too.
        "interval": numbers["interval"] if told.mean is not None and told.is_whole else None,
        "patients": {**patients, "mean": told.fewest, "by_class": told.patients, "more": _of(more, patients["more"])},
    }


def withhold_evaluation(
    numbers: Mapping[str, Any], minimum: int, parts: Parts = NO_PARTS, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return an evaluation without what a policy withholds.

    Args:
        numbers: as ``evaluation_numbers`` makes them.
        minimum: fewest patients behind a figure.
        parts: of the mean, in a job with targets.
        classes: names of the job's classes.
    """
    if parts:
        return _of_enough(numbers, parts, max(minimum, LEAST_PATIENTS))
    patients = numbers["patients"]
    if patients["mean"] < minimum:
        return _without_figures(numbers)
    if minimum <= LEAST_PATIENTS:
        return dict(numbers)
    # The site may have hidden a class of five patients. One that is all of the mean tells nothing beside it.
    others = any(value != numbers["mean"] for value in numbers["by_class"].values())
    some_are_hidden = others and not numbers["by_class"].keys() >= set(classes)
    told = patients["by_class"].keys() - withheld_counts(
        patients["by_class"], patients["mean"], minimum, some_are_hidden
    )
    more = {
        name for name, count in patients["more"].items() if count >= minimum and name.partition(".")[2] in ("", *told)
    }
    return {
        **numbers,
        "by_class": _of(told, numbers["by_class"]),
        "more": _of(more, numbers["more"]),
        "patients": {
            **patients,
            "by_class": _of(told, patients["by_class"]),
            "more": _of(more, patients["more"]),
        },
    }


def _without_figures(numbers: Mapping[str, Any]) -> dict[str, Any]:
    patients = {**numbers["patients"], "by_class": {}, "more": {}}
    return {**numbers, "mean": None, "by_class": {}, "more": {}, "interval": None, "patients": patients}


def without_thresholded(numbers: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return an evaluation without figures that depend on a threshold; see ``Metric.thresholded``.

    Args:
        numbers: as ``evaluation_numbers`` makes them.
        metrics: that the job's task declares.
    """
    kept = {name for name in numbers["more"] if not ((found := _declared(name, metrics)) and found.thresholded)}
    patients = {**numbers["patients"], "more": _of(kept, numbers["patients"]["more"])}
    return {**numbers, "more": _of(kept, numbers["more"]), "patients": patients}


def is_evaluation(
    value: Any,
    classes: Sequence[str],
    known: int = _MOST_CASES,
    metrics: Sequence[Metric] | None = None,
    lowest: float = 0.0,
    parts: Parts = NO_PARTS,
) -> bool:
    """Return whether a value is a valid evaluation.

    The rules are those of ``evaluation_numbers``.

    Args:
        value: as sent.
        classes: names of the job's classes.
        known: cases that the site has at most.
        metrics: extra ones that the job's task declares; None: those of any installed task.
        lowest: value of the task's metric.
        parts: of the mean, in a job with targets.
    """
    if not isinstance(value, Mapping) or set(value) != {"mean", "by_class", "more", "interval", "cases", "patients"}:
        return False
    by_class, more, interval = value["by_class"], value["more"], value["interval"]
    if not isinstance(by_class, Mapping) or not isinstance(more, Mapping) or not _is_count(value["cases"], known):
        return False
    if not _are_patients(value["patients"], by_class, more, value["cases"], parts):
        return False
    metrics = metrics_that_may_leave() if metrics is None else metrics
    enough = value["patients"]["mean"] >= LEAST_PATIENTS
    return (
        (value["mean"] is None or (value["patients"]["mean"] > 0 and is_share(value["mean"], lowest)))
        and all(name in classes and is_share(share, lowest) for name, share in by_class.items())
        and all(_is_figure(name, number, by_class, metrics) for name, number in more.items())
        and (interval is None or (enough and isinstance(interval, list) and _are_ends(interval, lowest)))
        and (not parts or _has_no_more(value, parts))
    )


def round_figure(value: float) -> float:
    """Return a figure with as many digits as may leave."""
    return float(f"{value:.{DIGITS}g}")


def is_share(value: Any, lowest: float = 0.0) -> bool:
    """Return whether a value lies from ``lowest`` to one, rounded as required.

    NaN, of a class without patients, is one.
    """
    if not is_number(value):
        return False
    return math.isnan(value) or (lowest - 1e-6 <= value <= 1 + 1e-6 and bool(value == round_figure(value)))


def is_number(value: Any) -> bool:
    """Return whether a value is a number, not bool."""
    return isinstance(value, float | int) and not isinstance(value, bool)


def _are_patients(value: Any, by_class: Mapping[str, Any], more: Mapping[str, Any], cases: int, parts: Parts) -> bool:
    """Return whether patient counts are consistent and large enough.

    No class may be of few patients, or of all but a few.
    """
    if not isinstance(value, Mapping) or set(value) != {"all", "mean", "by_class", "more"}:
        return False
    counts, of_more = value["by_class"], value["more"]
    if not (isinstance(counts, Mapping) and isinstance(of_more, Mapping)):
        return False
    if set(counts) != set(by_class) or set(of_more) != set(more):
        return False
    # Of a mean over all patients, classes are parts; targets are of all patients.
    whole = value["all"] if parts else value["mean"]
    return (
        _is_count(value["all"], cases)
        and _is_count(value["mean"], value["all"])
        and not 0 < value["mean"] < min(LEAST_PATIENTS, value["all"])
        and bool(value["all"]) == bool(cases)
        and all(
            _is_count(count, whole) and count >= LEAST_PATIENTS and not 0 < whole - count < LEAST_PATIENTS
            for count in counts.values()
        )
        and all(_is_count(count, value["all"]) and count >= LEAST_PATIENTS for count in of_more.values())
    )


def _has_no_more(value: Mapping[str, Any], parts: Parts) -> bool:
    """Return whether means and numbers of a job with targets follow from the figures that were sent."""
    expected = _of_enough(value, parts, LEAST_PATIENTS)
    return all(_same(value[name], expected[name]) for name in ("mean", "by_class", "more", "interval", "patients"))


def _same(first: Any, second: Any) -> bool:
    """Return whether values are equal, those that are NaN included."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    return bool(first == second) or (
        is_number(first) and is_number(second) and math.isnan(first) and math.isnan(second)
    )


def _are_ends(interval: Sequence[Any], lowest: float) -> bool:
    return len(interval) == 2 and all(is_share(end, lowest) for end in interval)


def _is_figure(name: Any, value: Any, told: Mapping[str, Any], metrics: Sequence[Metric]) -> bool:
    """Return whether a figure is declared and in bounds.

    Its class must have been sent.
    """
    _, dot, of = str(name).partition(".")
    metric = _declared(name, metrics)
    return (
        metric is not None
        and (not dot or of in told)
        and is_number(value)
        and metric.admits(value)
        and (math.isnan(value) or value == round_figure(value))
    )


def _declared(name: Any, metrics: Sequence[Metric]) -> Metric | None:
    """Return the metric of which a figure is."""
    kind, dot, _ = str(name).partition(".")
    # A metric of one target alone has the target in its name.
    declared = {(name, False), (kind, bool(dot))}
    return next((metric for metric in metrics if (metric.name, metric.per_class) in declared), None)


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _of(names: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round_figure(value) for name, value in figures.items()}
