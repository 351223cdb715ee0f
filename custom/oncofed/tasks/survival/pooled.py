"""A survival model on all sites' test patients together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.pooled_target import Line, Plot, PooledTarget, Table, TargetFigure
from oncofed.tasks.survival.figures import GROUPS
from oncofed.tasks.survival.follow_up import Floats
from oncofed.tasks.survival.joint import Estimate, JointCells
from oncofed.tasks.survival.life_table import LifeTable, logrank_p

_THIRDS = ("lowest third of risk", "middle third", "highest third")
_MOST_COLUMNS = 7


def pooled_survival(
    of_sites: Sequence[Mapping[str, Any]], ends: Sequence[float], unit: str, absolute: bool
) -> PooledTarget:
    """Return what sites' sums tell of a model.

    Args:
        of_sites: see ``cells.survival_sums``.
        ends: of the job's intervals, in ``unit``; the last is the horizon.
        unit: of time.
        absolute: the model tells the risk of an event by the horizon; else a relative one.
    """
    cells = JointCells.of_sites(of_sites, ends)
    patients = int(cells.count.sum())
    ill, well = (int(cells.count[kind].sum()) for kind in (cells.event, cells.is_free))
    figures = {
        "concordance": _figure("concordance", cells.concordance(), ill),
        "auc_at_horizon": _figure("AUC at the horizon", cells.auc(), min(ill, well)),
    }
    tables, plots = [], []
    groups = [cells.table(parts) for parts in cells.groups(len(_THIRDS))]
    if min(group.patients for group in groups) >= LEAST_PATIENTS:
        p = logrank_p(groups)
        figures["logrank_p"] = _figure("log-rank p between thirds of risk", p, patients)
        tables.append(_at_risk(groups, [0.0, *ends], unit))
        plots.append(_curves(groups, ends, unit, p))
    if absolute:
        figures["brier_at_horizon"] = _figure("Brier score at the horizon", cells.brier(), patients)
        points = _calibration(cells)
        error = float(np.average(np.abs(points[1] - points[0]), weights=points[2])) if points.size else None
        figures["calibration_at_horizon"] = _figure("calibration error at the horizon", error, patients)
        if points.size:
            plots.append(_calibration_plot(points, ends[-1], unit))
    told = {name: one for name, one in figures.items() if one}
    return PooledTarget(kind="survival", patients=patients, figures=told, tables=tables, plots=plots)


def _figure(title: str, found: Estimate | float | None, patients: int) -> TargetFigure | None:
    if found is None:
        return None
    one = found if isinstance(found, Estimate) else Estimate(found, None)
    return TargetFigure(title=title, value=one.value, patients=patients, interval=one.interval, bounds=one.bounds)


def _at_risk(groups: Sequence[LifeTable], times: Sequence[float], unit: str) -> Table:
    shown = np.unique(np.linspace(0, len(times) - 1, _MOST_COLUMNS).astype(int)).tolist()
    rows: dict[str, list[float | None]] = {}
    for name, group in zip(_THIRDS, groups, strict=True):
        counts = [round(float(group.at_risk[number])) for number in shown]
        rows[name] = [float(count) if count >= LEAST_PATIENTS else None for count in counts]
    return Table(title=f"at risk after … {unit}", columns=[f"{times[number]:.4g}" for number in shown], rows=rows)


def _curves(groups: Sequence[LifeTable], ends: Sequence[float], unit: str, p: float | None) -> Plot:
    lines = []
    for name, group in zip(_THIRDS, groups, strict=True):
        # A curve ends where few are left.
        told = group.at_risk[:-1] >= LEAST_PATIENTS
        points = [(end, float(share)) for end, share, there in zip(ends, group.survival, told, strict=True) if there]
        lines.append(Line(name=name, points=[(0.0, 1.0), *points]))
    test = "" if p is None else " (log-rank p < 0.001)" if p < 0.001 else f" (log-rank p = {p:.3f})"
    return Plot(title=f"Survival by predicted risk{test}", x=unit, y="share without event", lines=lines)


def _calibration(cells: JointCells) -> Floats:
    """Return predicted and observed risk of groups, (3, group).

    And the patients of each.
    """
    number = max(1, min(GROUPS, int(cells.count.sum()) // (2 * LEAST_PATIENTS)))
    found = []
    for parts, predicted in zip(cells.groups(number), cells.mean_risks(number), strict=True):
        table = cells.table(parts)
        if table.at_risk[-2] >= LEAST_PATIENTS and not np.isnan(table.survival[-1]):
            found.append([predicted, 1 - table.survival[-1], table.patients])
    return np.asarray(np.array(found).reshape(-1, 3).T)


def _calibration_plot(points: Floats, horizon: float, unit: str) -> Plot:
    line = Line(name="groups of risk", points=[(float(x), float(y)) for x, y in points[:2].T])
    title = f"Risk of an event by {horizon:g} {unit}"
    return Plot(title=title, x="predicted", y="observed, Kaplan-Meier", lines=[line], diagonal=True)
