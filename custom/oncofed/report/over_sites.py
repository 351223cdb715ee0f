"""Plots over all sites: ROC, precision-recall, reliability, targets' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oncofed.tasks.over_sites import PooledTest
from oncofed.tasks.pooled import Ranking, Reliability
from oncofed.tasks.pooled_target import Plot, PooledTarget

_BEFORE, _AFTER = "#b35900", "#0969da"
_COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]


def over_sites(test: PooledTest | None) -> Figure | None:
    """Return the three plots; None for a task without them."""
    if test is None:
        return None
    sure = [("before", _BEFORE, test.reliability), ("after", _AFTER, test.calibrated)]
    names = sure if test.calibrated else [("model", _BEFORE, test.reliability)]
    return _discrimination(test.classes, [(name, colour, found) for name, colour, found in names if found])


def of_target(target: PooledTarget) -> list[Figure]:
    """Return a target's plots over all sites."""
    colours = {name: _COLOURS[n % len(_COLOURS)] for n, name in enumerate(target.reliability)}
    found = [(name or "model", colours[name], one) for name, one in target.reliability.items()]
    # Of many findings two lines each would hide one another; their errors stand in the table.
    if len(found) == 1 and target.uncalibrated:
        (before,) = target.uncalibrated.values()
        found = [("before", _BEFORE, before), ("after", _AFTER, found[0][2])]
    first = _discrimination(target.classes, found)
    return [*([first] if first else []), *(_plot(plot) for plot in target.plots if not plot.is_empty)]


def _discrimination(
    classes: Mapping[str, Ranking], reliability: Sequence[tuple[str, str, Reliability]]
) -> Figure | None:
    """Return ROC, precision-recall and reliability side by side."""
    if not classes and not reliability:
        return None
    figure, (roc, precision, sure) = plt.subplots(1, 3, figsize=(10, 3.5), constrained_layout=True)
    for name, ranking in classes.items():
        _curves(roc, precision, name, ranking)
    roc.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    roc.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC, patients of all sites")
    precision.set(xlabel="sensitivity (recall)", ylabel="precision", title="Precision and recall")
    sure.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
    for name, colour, found in reliability:
        _reliability(sure, name, colour, found)
    sure.set(xlabel="how sure the model is", ylabel="share of whom it is right", title="Reliability")
    for axes in (roc, precision, sure):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="best")
    return figure


def _curves(roc: Axes, precision: Axes, name: str, ranking: Ranking) -> None:
    _, sensitivity, missed, right = zip(*ranking.curve, strict=True)
    roc.plot([0, *missed], [0, *sensitivity], linewidth=1.5, label=f"{name} {ranking.auroc:.3f}")
    precision.plot(sensitivity, right, linewidth=1.5, label=f"{name} {ranking.average_precision:.3f}")


def _reliability(axes: Axes, name: str, colour: str, found: Reliability) -> None:
    points = sorted((part.confidence, part.right, part.patients) for part in found.bins)
    sure, right, patients = zip(*points, strict=True)
    label = f"{name}, error {found.calibration_error:.3f}"
    axes.plot(sure, right, color=colour, linewidth=1, label=label)
    most = max(patients)
    axes.scatter(sure, right, color=colour, s=[10 + 50 * count / most for count in patients])


def _plot(plot: Plot) -> Figure:
    figure, axes = plt.subplots(figsize=(5, 3.5), constrained_layout=True)
    for line in plot.lines:
        steps, marker = "steps-post" if line.steps else "default", "o" if plot.diagonal else ""
        axes.plot(*zip(*line.points, strict=True), drawstyle=steps, marker=marker, label=line.name)
    if plot.diagonal:
        axes.axline((0, 0), slope=1, color="grey", linewidth=1, linestyle=":")
    axes.set(xlabel=plot.x, ylabel=plot.y, title=plot.title)
    axes.grid(alpha=0.3)
    if len(plot.lines) > 1:
        axes.legend(fontsize=7, loc="best")
    return figure
