"""Page of results: bars, and history over commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from oncofed.report.html import svg

from .results import BenchmarkRun, Figure
from .tables import HEADINGS, by_machine, machine_line, newest, number, rows_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Plot

_TEMPLATES = Path(__file__).parent / "templates"
_OURS, _BESIDE, _LIMIT = "#1f6f8b", "#b8b8b8", "#c0392b"


def write_page(runs: Sequence[BenchmarkRun], path: Path) -> None:
    """Write one self-contained HTML file.

    Args:
        runs: oldest first, at least one; the last of each machine and kind is shown in full, others as its history.
        path: of the file.
    """
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
    sections = [_section(group) for group in by_machine(runs)]
    text = environment.get_template("page.html").render(sections=sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _section(runs: Sequence[BenchmarkRun]) -> dict[str, object]:
    last = runs[-1]
    suites = []
    for of, suite in newest(runs):
        measured = [figure for figure in suite.figures if figure.samples]
        rows = [(figure, astuple(row)) for figure in suite.figures for row in rows_of(figure)]
        # Empty columns are left out.
        shown = [n for n in range(len(HEADINGS)) if any(cells[n] for _, cells in rows)]
        suites.append(
            {
                "suite": suite,
                "run": of,
                "headings": [HEADINGS[n] for n in shown],
                "rows": [
                    (figure, [(HEADINGS[n], cells[n].replace("**", "")) for n in shown]) for figure, cells in rows
                ],
                "notes": [figure for figure in suite.figures if figure.note],
                "bars": svg(_bars(measured)) if any(figure.baseline or figure.limit for figure in measured) else "",
                "history": _history(runs, suite.name, measured),
            }
        )
    limits = [(name, f"{value / 1e9:,.1f} G") for name, value in sorted(last.limits.items())]
    return {"run": last, "machine": machine_line(last), "suites": suites, "limits": limits, "runs": len(runs)}


def _bars(figures: Sequence[Figure]) -> Plot:
    """Return bars relative to oncofed; longer is better.

    Baseline, oncofed and limit.
    """
    shown = [figure for figure in figures if figure.over_baseline or figure.of_limit]
    plot, axes = plt.subplots(figsize=(9, 0.5 + 0.62 * len(shown)), constrained_layout=True)
    labels = []
    for index, figure in enumerate(reversed(shown)):
        labels.append(f"{figure.name}\n{number(figure.value)} {figure.unit}")
        axes.barh(index + 0.2, 1, 0.36, color=_OURS, label="oncofed" if index == 0 else None)
        if figure.over_baseline:
            axes.barh(index - 0.2, 1 / figure.over_baseline, 0.36, color=_BESIDE, label="" if index else "baseline")
            text = f" {figure.baseline.name if figure.baseline else ''}: {number(figure.over_baseline)} times"
            axes.text(1 / figure.over_baseline, index - 0.2, text, va="center", fontsize=7, color="#444444")
        if figure.of_limit:
            axes.plot([1 / figure.of_limit] * 2, [index - 0.4, index + 0.4], color=_LIMIT, linewidth=2)
            assert figure.limit is not None
            axes.text(1 / figure.of_limit, index + 0.25, f" {figure.limit.name}", fontsize=7, color=_LIMIT, va="center")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    furthest = max([1, *(1 / figure.of_limit for figure in shown if figure.of_limit)])
    furthest = max([furthest, *(1 / figure.over_baseline for figure in shown if figure.over_baseline)])
    if furthest > 20:
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, furthest * 1.35)
    axes.set_xlabel("relative to oncofed; longer is better")
    axes.spines[["top", "right"]].set_visible(False)
    return plot


def _history(runs: Sequence[BenchmarkRun], suite: str, figures: Sequence[Figure]) -> Markup | str:
    """Return small plots of figures over several runs.

    Only of runs with the same settings.
    """
    series: dict[str, list[tuple[str, Figure]]] = {}
    for figure in figures:
        points = [
            (run.commit[:8] or run.started[:10], past)
            for run in runs
            for name, past in run.figures()
            if name == suite and past.name == figure.name and past.settings == figure.settings and past.samples
        ]
        if len(points) > 1:
            series[f"{figure.name}, {figure.unit}"] = points
    if not series:
        return ""
    columns = min(3, len(series))
    lines = -(-len(series) // columns)
    plot, grid = plt.subplots(lines, columns, figsize=(3.2 * columns, 2.1 * lines), squeeze=False, layout="constrained")
    for axes in grid.flat[len(series) :]:
        axes.axis("off")
    for axes, (name, points) in zip(grid.flat, series.items(), strict=False):
        places = range(len(points))
        axes.plot(places, [figure.value for _, figure in points], marker="o", markersize=3, color=_OURS)
        spreads = [figure.spread or (figure.value, figure.value) for _, figure in points]
        axes.fill_between(places, [s[0] for s in spreads], [s[1] for s in spreads], color=_OURS, alpha=0.2)
        beside = [figure.baseline.value if figure.baseline else None for _, figure in points]
        if any(value is not None for value in beside):
            axes.plot(places, [float("nan") if v is None else v for v in beside], marker=".", color=_BESIDE)
        axes.set_title(name, fontsize=7)
        axes.set_xticks(places, [commit for commit, _ in points], rotation=45, fontsize=6)
        axes.tick_params(axis="y", labelsize=6)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return svg(plot)
