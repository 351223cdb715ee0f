"""Rows of text for results and comparisons, in any format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from string import ascii_uppercase

from .comparison import Change
from .results import BenchmarkRun, Figure, SuiteResult


@dataclass(frozen=True)
class Row:
    """A figure's row.

    Attributes:
        figure: its name and unit.
        ours: median, with the quartiles.
        baseline: median and name.
        over_baseline: how many times as good.
        limit: value and name.
        of_limit: share that is reached.
        target: what was aimed at, and whether it is met.
    """

    figure: str
    ours: str
    baseline: str
    over_baseline: str
    limit: str
    of_limit: str
    target: str


HEADINGS = ("figure", "oncofed", "baseline", "times as good", "limit", "of it", "target")


def rows_of(figure: Figure) -> list[Row]:
    """Return a figure's row, and one for each other program."""
    if figure.skipped:
        return [Row(f"{figure.name}, {figure.unit}", f"not measured: {figure.skipped}", "", "", "", "", "")]
    ours = number(figure.value)
    if figure.spread:
        ours += f" ({number(figure.spread[0])} to {number(figure.spread[1])})"
    base = figure.baseline
    rows = [
        Row(
            f"{figure.name}, {figure.unit}",
            ours,
            _beside(base.value, base.name, base.missing) if base else "",
            _times(figure.over_baseline),
            f"{number(figure.limit.value)} {figure.limit.name}" if figure.limit else "",
            "" if figure.of_limit is None else f"{figure.of_limit:.2f}",
            _target(figure),
        )
    ]
    for other in figure.others:
        seen = Figure(name="", unit="", better=figure.better, samples=figure.samples, baseline=other)
        beside = _beside(other.value, other.name, other.missing)
        rows.append(Row("", "", beside, _times(seen.over_baseline), "", "", ""))
    return rows


SHORT_HEADINGS = ("figure", "oncofed", "beside", "of the limit", "target")


def short_row(figure: Figure) -> tuple[str, ...]:
    """Return a figure's row under ``SHORT_HEADINGS``, for a terminal."""
    if figure.skipped:
        return (figure.name, "not measured", figure.skipped, "", "")
    beside = []
    for other in (figure.baseline, *figure.others):
        if other is None:
            continue
        seen = Figure(name="", unit="", better=figure.better, samples=figure.samples, baseline=other)
        times = f"× {_times(seen.over_baseline)} of" if seen.over_baseline else "not measured:"
        beside.append(f"{times} {other.name}")
    limit = f"{figure.of_limit:.0%} of {figure.limit.name}" if figure.limit and figure.of_limit is not None else ""
    met = "" if figure.met is None else "met" if figure.met else f"missed: {_aim(figure)}"
    return (figure.name, f"{number(figure.value)} {figure.unit}", "\n".join(beside), limit, met)


def by_machine(runs: Sequence[BenchmarkRun]) -> list[list[BenchmarkRun]]:
    """Group runs by machine and kind.

    ``runs`` are oldest first. The latest group comes first, groups of quick runs last.
    """
    groups: dict[tuple[str, bool], list[BenchmarkRun]] = defaultdict(list)
    for run in runs:
        groups[run.machine, run.quick].append(run)
    newest_first = sorted(groups.values(), key=lambda group: group[-1].started, reverse=True)
    return sorted(newest_first, key=lambda group: group[-1].quick)


def newest(runs: Sequence[BenchmarkRun]) -> list[tuple[BenchmarkRun, SuiteResult]]:
    """Return each suite's latest result with its run, by name."""
    found = {suite.name: (run, suite) for run in runs for suite in run.suites if suite.figures}
    return [found[name] for name in sorted(found)]


def markdown(runs: Sequence[BenchmarkRun]) -> str:
    """Return latest figures of each machine as Markdown.

    A row that says why nothing was measured is left out where the suite has no such figure any more.

    Args:
        runs: oldest first; quick ones are left out.
    """
    runs = [run for run in runs if not run.quick]
    present = {suite.name: {figure.name for figure in suite.figures} for _, suite in newest(runs)}
    lines = [f"| suite | {' | '.join(HEADINGS)} | measured |", "|" + "---|" * (len(HEADINGS) + 2)]
    machines, notes = [], []
    for letter, group in zip(ascii_uppercase, by_machine(runs), strict=False):
        machines.append(f"- {letter}: {machine_line(group[-1])}")
        for run, suite in newest(group):
            for figure in suite.figures:
                if figure.skipped and figure.name not in present[suite.name]:
                    continue
                when = f"{run.started[:10]} {letter}"
                rows = [astuple(row) for row in rows_of(figure)]
                lines += [f"| {' | '.join((suite.name, *rows[0], when))} |"]
                lines += [f"| {' | '.join(('', *row, ''))} |" for row in rows[1:]]
                notes += [f"- {suite.name}, {figure.name}: {figure.note}" for _ in range(bool(figure.note))]
    return "\n".join([*lines, "", "Machines:", "", *machines, "", "Notes:", "", *notes])


def machine_line(run: BenchmarkRun) -> str:
    """Return a line about a run's machine."""
    known = run.environment
    processor = (
        f"{known.get('processor') or known.get('device')}, {known.get('cores')} cores, {known.get('memory_gib')} GiB"
    )
    gpus = "; ".join(known.get("gpus") or [])
    gpu = f"{gpus}, driver {known.get('driver')}, CUDA {known.get('cuda')}" if gpus else "no GPU"
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", "monai", "nvflare") if name in known)
    return f"{processor}; {gpu}; {versions}; Python {known.get('python')}"


CHANGE_HEADINGS = ("figure", "before", "after", "time or need", "95 % interval", "")


def change_row(change: Change) -> tuple[str, ...]:
    """Return a change's row under ``CHANGE_HEADINGS``."""
    interval = f"{change.interval[0]:.2f} to {change.interval[1]:.2f}" if change.interval else ""
    ratio = "" if change.ratio is None else f"× {change.ratio:.2f}" + (" *" if change.adjusted else "")
    verdict = f"{change.verdict}: {change.why}" if change.why else change.verdict
    return (
        f"{change.suite}: {change.figure}, {change.unit}",
        number(change.before),
        number(change.after),
        ratio,
        interval,
        verdict,
    )


def number(value: float | None) -> str:
    """Return a number with three significant digits, without exponent."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.2g}" if abs(value) >= 1e-4 else f"{value:.6f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else number(ratio)


def _beside(value: float | None, name: str, missing: str) -> str:
    return f"{name}: not measured, {missing}" if missing else f"{number(value)} {name}"


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return _aim(figure) + {True: ", met", False: ", **not met**", None: ""}[figure.met]


def _aim(figure: Figure) -> str:
    """Return the text of a target."""
    target = figure.target
    assert target is not None
    return {
        "value": f"{number(target.value)} {figure.unit}",
        "baseline": f"× {number(target.value)} of the baseline",
        "limit": f"{number(target.value)} of the limit",
    }[target.of]
