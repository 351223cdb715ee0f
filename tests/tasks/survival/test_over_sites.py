"""Survival over several sites from cells of five patients: near what all patients in one place would give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sksurv.compare import compare_survival
from sksurv.util import Surv

from follow_ups import drawn
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.survival import figures
from oncofed.tasks.survival.cells import coarser_survival, is_survival_sums, survival_sums
from oncofed.tasks.survival.follow_up import FollowUps
from oncofed.tasks.survival.joint import JointCells
from oncofed.tasks.survival.life_table import LifeTable, logrank_p
from oncofed.tasks.survival.pooled import pooled_survival

HORIZON = 36.0
ENDS = np.linspace(3.6, HORIZON, 10)
Site = tuple[NDArray[np.float64], FollowUps]


def site(count: int, seed: int, **kind: Any) -> Site:
    """Return predicted risks by the horizon, not quite those of the law, and follow-ups."""
    log_risks, known = drawn(count, seed, **kind)
    off = np.random.default_rng(seed).normal(0.2 * (seed % 2), 0.5, count)
    return 1 - np.exp(-0.02 * HORIZON * np.exp(log_risks + off)), known


def sums_of(one: Site) -> dict[str, Any]:
    found = survival_sums(*one, [f"p{n}" for n in range(len(one[0]))], ENDS)
    assert found
    assert is_survival_sums(json.loads(json.dumps(found)), len(ENDS), len(one[0]))
    return found


def together(sites: Sequence[Site]) -> Site:
    times, events = (np.concatenate([getattr(known, name) for _, known in sites]) for name in ("times", "events"))
    return np.concatenate([risks for risks, _ in sites]), FollowUps(times, events)


@pytest.mark.parametrize(("sizes", "most"), [((400, 400), 0.006), ((200, 300), 0.009), ((60, 60, 60, 60), 0.04)])
@pytest.mark.parametrize("kind", [{}, {"whole_months": True}])
def test_concordance_and_auc_are_near_those_of_all_patients_in_one_place(
    sizes: tuple[int, ...], most: float, kind: dict[str, bool]
) -> None:
    off = []
    for draw in range(4):
        sites = [site(count, 10 * draw + number, **kind) for number, count in enumerate(sizes)]
        risks, known = together(sites)
        cells = JointCells.of_sites([sums_of(one) for one in sites], tuple(ENDS))
        concordance, area = cells.concordance(), cells.auc()
        assert concordance
        assert area
        exact, exact_area = (one(risks, known, HORIZON) for one in (figures.concordance, figures.auc_at))
        assert exact
        assert exact_area
        off += [abs(concordance.value - exact), abs(area.value - exact_area)]
        assert concordance.bounds
        assert concordance.bounds[0] <= exact <= concordance.bounds[1]
    assert max(off) <= most


def test_intervals_cover_the_figures_of_the_law() -> None:
    whole = together([site(20_000, 100), site(20_000, 101)])
    laws = [one(*whole, HORIZON) for one in (figures.concordance, figures.auc_at)]
    covered, widths, values = np.zeros(2), [], []
    for draw in range(100):
        sites = [site(150, 2 * draw), site(150, 2 * draw + 1)]
        cells = JointCells.of_sites([sums_of(one) for one in sites], tuple(ENDS))
        found = [cells.concordance(), cells.auc()]
        ends = np.array([one.interval for one in found if one and one.interval])
        covered += (ends[:, 0] <= laws) & (laws <= ends[:, 1])
        widths.append(ends[:, 1] - ends[:, 0])
        values.append([one.value for one in found if one])
    assert (covered >= 90).all()
    spread = 2 * 1.96 * np.std(values, axis=0)
    assert np.mean(widths, axis=0) == pytest.approx(spread, rel=0.2)


def test_brier_curves_and_calibration_are_near_those_of_all_patients_in_one_place() -> None:
    sites = [site(400, 1), site(300, 2)]
    risks, known = together(sites)
    cells = JointCells.of_sites([sums_of(one) for one in sites], tuple(ENDS))
    assert cells.brier() == pytest.approx(figures.brier_at(1 - risks, known, HORIZON), abs=0.004)
    everybody = cells.table(np.ones(len(cells.count)))
    assert everybody.survival == pytest.approx(known.survival(ENDS), abs=0.006)
    for number, group in enumerate(np.array_split(np.argsort(risks), 3)):
        table = cells.table(cells.groups(3)[number])
        own = FollowUps(known.times[group], known.events[group])
        assert table.survival == pytest.approx(own.survival(ENDS), abs=0.05)
        assert cells.mean_risks(3)[number] == pytest.approx(risks[group].mean(), abs=0.02)
    test = pooled_survival([sums_of(one) for one in sites], tuple(ENDS), "months", absolute=True)
    assert test.patients == 700
    error = figures.calibration_error(risks, known, HORIZON)
    assert test.figures["calibration_at_horizon"].value == pytest.approx(error, abs=0.015)


@pytest.mark.parametrize("apart", [0.0, 0.15, 0.6])
def test_logrank_is_scikit_survivals(apart: float) -> None:
    rng = np.random.default_rng(4)
    group = np.arange(300) % 3
    known = drawn(300)[1]
    times = np.minimum(known.times * np.exp(-apart * group) + rng.uniform(0, 0.1, 300), 60)
    outcome = Surv.from_arrays(known.events & (times < 60), times)
    # Intervals so short that each holds one event, and the half of an interval does not matter.
    ends = np.linspace(0.002, 60, 30_000)
    tables = []
    for one in range(3):
        inside = np.searchsorted(ends, times[group == one])
        events, others = (
            np.bincount(inside[kind[group == one]], minlength=len(ends) + 1)[: len(ends)].astype(float)
            for kind in (outcome["event"], ~outcome["event"])
        )
        tables.append(LifeTable(100, events, others))
    theirs = compare_survival(outcome, group)[1]
    assert logrank_p(tables) == pytest.approx(theirs, rel=0.02)


PATIENT = st.tuples(st.floats(0, 50), st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.floats(0, 1))


def read(patients: Sequence[tuple[float, bool, float]]) -> Site:
    times, events, risks = (np.array([one[n] for one in patients], kind) for n, kind in enumerate((float, bool, float)))
    return risks, FollowUps(times, events)


def counts(sums: dict[str, Any]) -> list[int]:
    return [cell[1] for kind in ("events", "others") for span in sums[kind] for cell in span[2]]


@given(st.lists(PATIENT, max_size=80), st.integers(5, 30))
def test_every_cell_holds_enough_patients_also_where_a_site_wants_more(
    patients: list[tuple[float, bool, float]], fewest: int
) -> None:
    one = read(patients)
    found = survival_sums(*one, [f"p{n}" for n in range(len(patients))], ENDS)
    ill = int(one[1].events_by(HORIZON).sum())
    if len(patients) < 5 or 0 < ill < 5 or 0 < len(patients) - ill < 5:
        assert found is None
        return
    assert found
    assert is_survival_sums(found, len(ENDS), len(patients))
    assert sum(counts(found)) == len(patients)
    assert min(counts(found)) >= LEAST_PATIENTS
    coarse = coarser_survival(found, fewest)
    if coarse:
        assert is_survival_sums(coarse, len(ENDS), len(patients))
        assert sum(counts(coarse)) == len(patients)
        assert min(counts(coarse)) >= fewest


@given(st.lists(st.lists(PATIENT, min_size=5, max_size=40), min_size=1, max_size=4))
def test_bounds_hold_the_concordance_and_nothing_fails(sites: list[list[tuple[float, bool, float]]]) -> None:
    told = []
    for patients in sites:
        one = read(patients)
        found = survival_sums(*one, [f"p{n}" for n in range(len(patients))], ENDS)
        if found:
            told.append((one, found))
    if not told:
        return
    risks, known = together([one for one, _ in told])
    exact = figures.concordance(risks, known, HORIZON)
    test = pooled_survival([found for _, found in told], tuple(ENDS), "months", absolute=True)
    found = test.figures.get("concordance")
    if exact is None:
        assert found is None or found.bounds == (0.0, 1.0), "which pairs are comparable is not certain"
        return
    assert found
    assert found.bounds
    assert found.bounds[0] - 1e-9 <= exact <= found.bounds[1] + 1e-9
    for one in test.figures.values():
        assert 0 <= one.value <= 1


def test_a_site_of_coarser_cells_joins_others() -> None:
    sites = [site(400, 1), site(300, 2)]
    fine, other = (sums_of(one) for one in sites)
    coarse = coarser_survival(other, 10)
    assert coarse
    found = JointCells.of_sites([fine, coarse], tuple(ENDS)).concordance()
    exact = figures.concordance(*together(sites), HORIZON)
    assert found
    assert found.bounds
    assert exact == pytest.approx(found.value, abs=0.02)
    assert found.bounds[0] <= exact <= found.bounds[1]


def test_all_censored_are_counted_and_have_no_figures_but_no_failure() -> None:
    risks, known = site(40, 0)
    none = FollowUps(known.times, np.zeros(40, dtype=bool))
    test = pooled_survival([sums_of((risks, none))], tuple(ENDS), "months", absolute=True)
    assert test.patients == 40
    assert not {"concordance", "auc_at_horizon", "logrank_p"} & test.figures.keys()


def test_a_relative_risk_has_no_absolute_figures() -> None:
    test = pooled_survival([sums_of(site(100, 3))], tuple(ENDS), "months", absolute=False)
    assert set(test.figures) == {"concordance", "auc_at_horizon", "logrank_p"}
    assert [plot.title.split(" (")[0] for plot in test.plots] == ["Survival by predicted risk"]


def test_numbers_at_risk_of_few_are_not_told() -> None:
    test = pooled_survival([sums_of(site(40, 3, censored_by=40.0))], tuple(ENDS), "months", absolute=True)
    (table,) = test.tables
    assert table.title == "at risk after … months"
    shown = [cell for row in table.rows.values() for cell in row]
    assert None in shown
    assert min(cell for cell in shown if cell is not None) >= LEAST_PATIENTS
