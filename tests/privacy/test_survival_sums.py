"""Sums of survival targets leave a site in their shape alone: no time, no single risk, no cell of a few patients."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from follow_ups import drawn
from oncofed.client.reported_patients import refuse_overlap
from oncofed.errors import PolicyError
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.tasks.targets.survival import SurvivalHead, SurvivalTarget

HEAD = SurvivalHead(SurvivalTarget(name="os", unit="months", horizon=36))
TARGETS = {"os": HEAD}


def sums_of(count: int, seed: int = 0, censored_by: float = 80.0) -> dict[str, Any] | None:
    log_risks, known = drawn(count, seed, censored_by)
    survival = np.exp(-0.02 * np.exp(log_risks)[:, None] * np.array(HEAD.settings.ends))
    truths = np.stack([known.times, known.events], axis=1)
    return HEAD.site_sums(survival, truths, [f"p{n}" for n in range(count)])


def sent(count: int = 120) -> dict[str, Any]:
    """Return what a site with so many patients sends."""
    return {
        "evaluation": {
            "mean": 0.7,
            "by_class": {"os": 0.7},
            "more": {},
            "interval": None,
            "cases": count,
            "patients": {"all": count, "mean": count // 3, "by_class": {"os": count // 3}, "more": {}},
        },
        "pooled": {"patients": count, "targets": {"os": sums_of(count)}},
    }


def check(numbers: dict[str, Any]) -> None:
    check_numbers(numbers, ["os"], sums=True, targets=TARGETS)


def test_what_a_site_makes_passes_and_survives_its_way() -> None:
    check(json.loads(json.dumps(sent())))


@pytest.mark.attack(
    "event times or a patient's risk in the place of counts by interval",
    by="the site's outbound check: the job's intervals, cells of five patients at least, sums within bounds and digits",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("patients", 4),
        ("patients", 121),
        ("times", [12.3, 4.5]),
        ("events/0/0", 3.7),  # a time in the place of an interval
        ("events/0/0", 11),
        ("events/0/1", 10),  # of the horizon, which no event has
        ("events/0/1", -1),
        ("events/0", [0, 0, []]),
        ("events/0/2/0/1", 4),  # a cell of four
        ("events/0/2/0", [120, 1, -0.37, 0.14]),  # one patient's risk
        ("events/0/2/0/2", 0.123456789),
        ("events/0/2/0/2", 1e6),
        ("others/0/2/-1/0", 3),  # where the lowest risk lies
        ("others/0/3", "MRN-0001"),
        ("others", {"MRN-0001": 1}),
        ("pairs/0", 0.25),
        ("pairs/0", 1e9),
        ("pairs/0", -0.5),
        ("pairs/1", 10_000_000),
        ("pairs/1", float("nan")),
        ("pairs", [1.0]),
        ("pairs", [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_another_shape_is_held_back_and_the_reason_repeats_none_of_it(path: str, value: Any) -> None:
    numbers = copy.deepcopy(sent())
    inner = numbers["pooled"]["targets"]["os"]
    *parents, last = (int(part) if part.lstrip("-").isdigit() else part for part in path.split("/"))
    for parent in parents:
        inner = inner[parent]
    if isinstance(inner, list) and last == len(inner):
        inner.append(value)
    else:
        inner[last] = value
    with pytest.raises(PolicyError) as caught:
        check(numbers)
    assert "MRN" not in str(caught.value)
    assert str(value) not in str(caught.value)


@pytest.mark.attack(
    "an event that four patients had, or that all but four had",
    by="the target's sums: neither they nor the number of the others leaves",
    logged="not at all: there is nothing to hold back",
)
@pytest.mark.parametrize("events", [1, 4, 36, 39])
def test_of_four_patients_with_or_without_the_event_nothing_leaves(events: int) -> None:
    truths = np.stack([np.full(40, 12.0), np.arange(40) < events], axis=1)
    survival = np.linspace(0.9, 0.1, 40)[:, None] * np.ones(10)
    assert HEAD.site_sums(survival, truths, [f"p{n}" for n in range(40)]) is None


@pytest.mark.attack(
    "many images of four patients to fill a cell",
    by="the target's sums: a patient's images count once",
    logged="not at all: there is nothing to hold back",
)
def test_images_of_a_patient_fill_no_cell() -> None:
    truths = np.stack([np.full(60, 12.0), np.arange(60) % 4 < 2], axis=1)
    survival = np.linspace(0.9, 0.1, 60)[:, None] * np.ones(10)
    assert HEAD.site_sums(survival, truths, [f"p{n % 4}" for n in range(60)]) is None


@pytest.mark.attack(
    "the same sums under two policies, whose differences tell of a few patients",
    by="coarser cells are made of whole ones: each difference is of five patients at least",
    logged="the site's audit log: withheld",
)
@pytest.mark.parametrize("minimum", [6, 10, 17])
@pytest.mark.parametrize("count", [60, 200])
def test_differences_of_two_policies_tell_of_no_fewer_than_five(count: int, minimum: int) -> None:
    fine = sums_of(count)
    assert fine
    numbers: dict[str, Any] = {"pooled": {"patients": count, "targets": {"os": copy.deepcopy(fine)}}}
    assert withhold(numbers, minimum, TARGETS)
    coarse = numbers["pooled"]["targets"]["os"]
    check({**sent(count), **numbers})
    for kind in ("events", "others"):
        cells = [cell for *_, of_span in fine[kind] for cell in of_span]
        told = [cell[1] for *_, of_span in coarse[kind] for cell in of_span]
        assert min(told) >= minimum
        # In the order of both, each coarse cell is the sum of the next fine ones.
        sizes = iter(cell[1] for cell in cells)
        for whole in told:
            total = 0
            while total < whole:
                total += next(sizes)
            assert total == whole
        assert next(sizes, None) is None


def test_where_a_policy_wants_more_patients_than_had_the_event_nothing_leaves() -> None:
    numbers: dict[str, Any] = {"pooled": {"patients": 60, "targets": {"os": sums_of(60)}}}
    assert withhold(numbers, 50, TARGETS)
    assert "pooled" not in numbers


@pytest.mark.attack(
    "reading when a patient's event came out of the cells",
    by="the cells: they are the same wherever within its interval a time lies",
    logged="not at all: there is nothing to hold back",
)
def test_cells_do_not_change_with_times_within_their_intervals() -> None:
    log_risks, known = drawn(150)
    survival = np.exp(-0.02 * np.exp(log_risks)[:, None] * np.array(HEAD.settings.ends))
    edges = np.array([0.0, *HEAD.settings.ends, 1000.0])
    interval = np.searchsorted(edges, known.times, side="left") - 1
    moved = np.random.default_rng(5).uniform(edges[interval] + 1e-6, edges[interval + 1] - 1e-6)
    people = [f"p{n}" for n in range(150)]
    told = [HEAD.site_sums(survival, np.stack([times, known.events], axis=1), people) for times in (known.times, moved)]
    assert told[0]
    assert told[0] == told[1]


@pytest.mark.attack(
    "reading how many of one to four events came in an interval out of the pairs",
    by="the cells: pairs are counted between spans alone, whose numbers the cells tell",
    logged="not at all: there is nothing to hold back",
)
@pytest.mark.parametrize("kind", ["events", "reached the horizon"])
def test_pairs_do_not_tell_counts_below_five(kind: str) -> None:
    told = []
    for few in range(1, 5):
        if kind == "events":
            times, events = [3.0] * few + [20.0] * (12 - few) + [9.0] * 10 + [40.0] * 10, [1] * 12 + [0] * 20
        else:
            times, events = [20.0] * 12 + [40.0] * few + [34.0] * (20 - few), [1] * 12 + [0] * 20
        # Of equal risks no pair's order tells who is where.
        truths = np.stack([times, events], axis=1)
        told.append(HEAD.site_sums(np.full((32, 10), 0.5), truths, [f"p{n}" for n in range(32)]))
    assert told[0]
    assert all(one == told[0] for one in told)


def test_coarser_cells_come_without_pairs_of_the_smaller_ones() -> None:
    numbers: dict[str, Any] = {"pooled": {"patients": 120, "targets": {"os": sums_of(120)}}}
    assert withhold(numbers, 10, TARGETS)
    assert numbers["pooled"]["targets"]["os"]["pairs"] == []


def groups_of(intervals: Any, horizon: float = 24) -> list[list[str]]:
    """Return the groups that a job tells of: ten events by 12 months, one soon after, and others."""
    head = SurvivalHead(SurvivalTarget(name="os", unit="months", horizon=horizon, intervals=intervals))
    times = [*np.linspace(1, 11, 10), 12.05, *np.linspace(14, 23, 10), *np.full(39, 40.0)]
    truths = np.stack([times, [1] * 21 + [0] * 39], axis=1)
    return [sorted(group) for group in head.kinds(truths, [f"p{n}" for n in range(60)]).values() if len(group) >= 5]


@pytest.mark.attack(
    "the time of one patient's event, by two jobs whose intervals or horizons lie around it",
    by="the site's record of whose sums left: whose event came by each end is a group of it",
    logged="the site's log: sums over the group stay here",
)
@pytest.mark.parametrize("later", [((12.06, 24), 24), ((12.06,), 12.06), ((5.0, 12.06, 24), 24)])
def test_intervals_of_two_jobs_do_not_tell_when_an_event_came(tmp_path: Path, later: tuple[Any, float]) -> None:
    assert refuse_overlap(tmp_path, "lives", groups_of((12.04, 24))) == ""
    assert "would tell of 1" in refuse_overlap(tmp_path, "lives", groups_of(*later))
    assert refuse_overlap(tmp_path, "lives", groups_of((12.04, 24))) == "", "the same again tells nothing new"
    assert refuse_overlap(tmp_path, "lives", groups_of((6.0, 12.04, 24))) == "", "apart by five"


def test_ends_that_no_cell_tells_are_not_noted() -> None:
    fine, coarse = groups_of((12.04, 12.06, 24)), groups_of((12.04, 24))
    assert fine == coarse
