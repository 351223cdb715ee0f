"""FROC over sites from counts of boxes agrees with all boxes in one place, and tells of nobody."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oncofed.data.spec import DataSpec
from oncofed.errors import PolicyError
from oncofed.privacy.evaluations import evaluation_numbers, is_evaluation
from oncofed.privacy.outbound import check_numbers, withhold
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import sums_that_may_leave
from oncofed.tasks.detection import Detection, DetectionSpec, Matched
from oncofed.tasks.detection.figures import FALSE_POSITIVES, SENSITIVITIES, patients_of_steps, sensitivities
from oncofed.tasks.detection.froc_sums import FrocSums, curve_may_leave, froc_sums, told_patients
from oncofed.tasks.over_sites import pooled_test
from oncofed.tasks.pooled import bins_of, log_odds
from oncofed.tasks.pooled_target import PooledTarget
from oncofed.tasks.scores import Evaluation
from oncofed.tasks.whole_slide.settings import SlideDetectionSpec

Site = list[tuple[str, Matched]]
SPEC = DetectionSpec(classes={1: "nodule"})
DATA = DataSpec(dataset="x", modality="ct", patch=(16, 16, 16), spacing=(1.0, 1.0, 1.0))


def sums_over() -> FrocSums:
    found = sums_that_may_leave(SPEC)["nodule"]
    assert isinstance(found, FrocSums)
    return found


def site(rng: np.random.Generator, scans: int, objects: float | None = 1.2, shift: float = 0.0) -> Site:
    """Return scans with nodules, or one each, of which nine tenths are found, among a dozen other boxes."""
    cases = []
    for number in range(scans):
        there = 1 if objects is None else int(rng.poisson(objects))
        hits = rng.normal(0.5 + shift, 1.5, rng.binomial(there, 0.95))
        other = rng.normal(shift - 2.5, 1.3, rng.poisson(12))
        scores = 1 / (1 + np.exp(-np.concatenate([hits, other])))
        kept, is_hit = scores >= SPEC.least_score, np.arange(len(scores)) < len(hits)
        cases.append((f"p{number}", Matched(scores[kept], is_hit[kept], there)))
    return cases


def pooled(sites: list[Site]) -> PooledTarget:
    told = [sums for one in sites if (sums := froc_sums(one))]
    found = sums_over().over_sites(json.loads(json.dumps(told)))
    assert found
    return found


@pytest.mark.parametrize(("scans", "mean", "one"), [((300, 200, 250), 0.002, 0.01), ((60, 100, 80), 0.006, 0.025)])
def test_sensitivities_are_those_of_all_boxes_in_one_place(scans: tuple[int, ...], mean: float, one: float) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sites = [site(rng, count, shift=rng.normal(0, 0.3)) for count in scans]
        exact, found = sensitivities([case for cases in sites for _, case in cases]), pooled(sites)
        assert exact is not None
        assert found.figures["cpm"].value == pytest.approx(exact.mean(), abs=mean)
        assert [found.figures[metric.name].value for metric in SENSITIVITIES] == pytest.approx(exact, abs=one)


def test_without_cells_of_five_patients_bins_alone_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncofed.tasks.pooled.cells_of.__defaults__", (1,))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sites = [site(rng, count) for count in (300, 200, 250)]
        exact = sensitivities([case for cases in sites for _, case in cases])
        assert exact is not None
        assert pooled(sites).figures["cpm"].value == pytest.approx(exact.mean(), abs=0.002)


@given(st.lists(st.tuples(st.integers(10, 40), st.floats(0.1, 3)), min_size=1, max_size=3), st.integers(0, 1000))
@example([(10, 2.5)], 276)  # seven false positives and a half are more than there are
@settings(max_examples=40)
def test_the_bounds_contain_the_sensitivity_of_all_boxes(sites: list[tuple[int, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = [one for count, objects in sites if froc_sums(one := site(rng, count, objects))]
    exact = sensitivities([case for cases in made for _, case in cases]) if made else None
    if exact is None:
        return
    found = pooled(made).figures
    for metric, value in zip(SENSITIVITIES, exact, strict=True):
        low, high = found[metric.name].bounds or (1.0, 0.0)
        assert low - 1e-9 <= value <= high + 1e-9
        assert low - 1e-9 <= found[metric.name].value <= high + 1e-9


def test_a_site_without_any_object_counts_with_its_false_positives() -> None:
    rng = np.random.default_rng(1)
    ill, well = site(rng, 60), site(rng, 60, objects=0)
    exact = sensitivities([case for _, case in (*ill, *well)])
    assert exact is not None
    assert pooled([ill, well]).figures["cpm"].value == pytest.approx(exact.mean(), abs=0.01)
    assert sums_over().over_sites([froc_sums(well) or {}]) is None


def boxes(scores: list[float], hit: bool, objects: int) -> Matched:
    return Matched(np.array(scores), np.full(len(scores), hit), objects)


def test_what_rests_on_one_to_four_patients_is_no_sum() -> None:
    everybody = [(f"p{n}", boxes([0.9], True, 1)) for n in range(10)]
    assert froc_sums(everybody)
    assert froc_sums(everybody[:9]) is None, "five would tell of four others"
    # Nine patients' images, however many.
    assert froc_sums([(f"p{n % 9}", case) for n, (_, case) in enumerate(everybody)]) is None
    # Four have objects, four have hits, or four have false positives.
    assert froc_sums([(p, case if n < 4 else boxes([0.9], False, 0)) for n, (p, case) in enumerate(everybody)]) is None
    assert froc_sums([(p, case if n < 4 else boxes([], True, 1)) for n, (p, case) in enumerate(everybody)]) is None
    assert froc_sums([(p, case if n > 3 else boxes([0.9], False, 1)) for n, (p, case) in enumerate(everybody)]) is None


def test_every_cell_is_of_five_patients_and_tells_of_no_four_others() -> None:
    cases = site(np.random.default_rng(2), 12, objects=3)
    sums = froc_sums(cases)
    assert sums
    # Five to twelve of twelve: five are told of.
    assert sums["with_objects"] == 5
    for kind in ("hits", "false_positives"):
        assert {row[4] == 5 and row[1] >= LEAST_PATIENTS for row in sums[kind]} == {True}
    assert sums["with_misses"] == 0, "two patients have one that was missed"
    assert sum(row[1] for row in sums["hits"]) == sum(case.objects for _, case in cases)
    assert sum(row[1] for row in sums["false_positives"]) == sum(int((~case.hits).sum()) for _, case in cases)


def found_but(patients: int, misses: int, of: int = 30) -> Site:
    """Return scans with three nodules and a false positive each, of which some patients have some that are missed."""
    rng = np.random.default_rng(8)
    scores = rng.uniform(0.2, 0.9, (of, 4))
    return [
        (f"p{n}", Matched(scores[n], np.array([True, True, True, False]), 3 + (misses if n < patients else 0)))
        for n in range(of)
    ]


@pytest.mark.attack(
    "how many objects of one to four patients were missed, from the number of objects less that of hits",
    by="the site before it sends, and its policy: the lowest cell of hits takes them",
    logged="nowhere: what is left leaves",
)
@pytest.mark.parametrize(("patients", "least", "hidden"), [(1, 5, True), (4, 5, True), (5, 5, False), (9, 10, True)])
def test_objects_that_few_patients_had_missed_are_not_counted(patients: int, least: int, hidden: bool) -> None:
    sums = froc_sums(found_but(patients, 2))
    assert sums
    if least > LEAST_PATIENTS:
        assert sums["with_misses"] == patients // 5 * 5
        sums = sums_over().withhold(sums, least)
        assert sums
    missed = sums["objects"] - sum(row[1] for row in sums["hits"])
    assert (missed, sums["with_misses"]) == ((0, 0) if hidden else (2 * patients, patients))
    assert sums_over().is_site_sums(sums, 30)
    if least == LEAST_PATIENTS and hidden:
        # Nor do mean and spread of the cell tell it.
        *above, (_, boxes, total, squares, _) = sums["hits"]
        scores = np.sort(np.concatenate([case.scores[case.hits] for _, case in found_but(patients, 2)]))
        odds = log_odds(scores)[: boxes - 2 * patients]
        assert sum(row[1] for row in above) + len(odds) == len(scores)
        assert (total / boxes, squares / boxes) == pytest.approx((odds.mean(), np.square(odds).mean()), abs=0.02)
    found = sums_over().over_sites([sums])
    exact = sensitivities([case for _, case in found_but(patients, 2)])
    assert found
    assert exact is not None
    low, high = found.figures["sensitivity_8"].bounds or (1.0, 0.0)
    assert low <= exact[-1] <= high
    hits = found.tables[0].rows["at any score"][2]
    assert hits == (None if hidden else 90)


@pytest.mark.attack(
    "single patients' numbers of objects, from their sum and how many patients have some",
    by="the site before it sends: no sum of squares, and patients with objects in fives",
    logged="nowhere: what is left leaves",
)
def test_numbers_of_objects_leave_single_patients_unknown() -> None:
    """Any numbers that agree with what is sent may be the patients': their largest must not be the same in all."""
    for seed in range(19):
        rng = np.random.default_rng(seed)
        patients = 10 + seed % 7
        counts = 1 + rng.multinomial(rng.integers(0, 8), np.ones(patients) / patients)
        counts[: int(rng.integers(0, patients - 4))] = 0
        counts[-1] += [0, 0, 1, 40][seed % 4]
        if seed >= 12:
            # Five have one object, or two.
            counts = np.repeat([0, 1, 2], [patients - 5, 4, 1])
        sums = froc_sums([(f"p{n}", one_hit_each(rng, int(number))) for n, number in enumerate(counts)])
        assert bool(sums) == (counts.sum() >= 10), "of five patients with six objects one has two"
        if not sums:
            continue
        assert set(sums) == KEYS
        assert is_agreed(sums, counts)
        # Largest numbers from which the others can be filled up, by patients with one object more or fewer.
        largest = {
            most
            for most in range(1, sums["objects"] + 1)
            for bearers in range(5, patients + 1)
            if is_agreed(sums, filled(most, bearers, sums["objects"], patients))
        }
        # As many objects as patients with some: each has one, of five or more patients.
        assert len(largest) > 1 or sums["objects"] == sums["with_objects"], counts


KEYS = {"patients", "with_objects", "with_misses", "extent", "objects", "hits", "false_positives"}


def one_hit_each(rng: np.random.Generator, objects: int) -> Matched:
    return Matched(rng.uniform(0.3, 0.9, objects + 1), np.arange(objects + 1) < objects, objects)


def filled(most: int, bearers: int, objects: int, patients: int) -> list[int]:
    """Return patients' numbers of objects of which the largest is given; of another sum where there are none."""
    counts, left = [most], objects - most
    for others in range(bearers - 1, 0, -1):
        counts.append(max(1, min(most, left - others + 1)))
        left -= counts[-1]
    return counts + [0] * (patients - bearers)


def is_agreed(sums: dict[str, Any], counts: Any) -> bool:
    """Return whether patients' numbers of objects would lead to the same message."""
    bearers = int(np.count_nonzero(counts))
    same = sums["with_objects"] == told_patients(bearers, sums["patients"])
    return bool(same and len(counts) == sums["patients"] and sum(counts) == sums["objects"] and bearers >= 5)


def leaving(task: Detection, cases: Site, least: int = LEAST_PATIENTS) -> dict[str, Any]:
    """Return a site's scores and sums of test patients, as its policy lets them leave."""
    outcomes = [(p, {"nodule": case}) for p, case in cases]
    found = task.summarise(outcomes)
    behind = {name: frozenset(some) for name, some in task.patients_behind(outcomes).items()}
    people, may_leave = frozenset(p for p, _ in cases), task.may_leave(outcomes)
    evaluation = Evaluation(
        found.mean, found.by_class, found.extra_metrics, len(cases), (0.1, 0.9), (), people, behind, may_leave=may_leave
    )
    numbers: dict[str, Any] = {"evaluation": evaluation_numbers(evaluation)}
    if sums := task.pooled(outcomes):
        numbers["pooled"] = sums
    withhold(numbers, least, sums_that_may_leave(SPEC))
    check_numbers(numbers, ["nodule"], sums=True, most=len(cases), targets=sums_that_may_leave(SPEC))
    assert is_evaluation(numbers["evaluation"], ["nodule"], len(cases), task.extra_metrics)
    return numbers


def in_steps(*patients: int) -> Site:
    """Return a scan with a nodule of each patient: found at one rate of false positives after another, or missed."""
    everybody, missed = sum(patients), len(patients) - 1
    boxes: list[list[tuple[float, bool]]] = []
    for step, number in enumerate(patients):
        boxes += [[(0.9 - 0.1 * step, True)] if step < missed else [] for _ in range(number)]
    false = 0
    for step in range(1, missed):
        # One more than the rate before allows.
        while false <= everybody * FALSE_POSITIVES[step - 1]:
            boxes[false % everybody].append((0.95 - 0.1 * step, False))
            false += 1
    return [
        (f"p{n}", Matched(np.array([s for s, _ in one]), np.array([hit for _, hit in one], bool), 1))
        for n, one in enumerate(boxes)
    ]


@pytest.mark.attack(
    "how many objects of one to four patients were found or missed, from differences of a site's sensitivities",
    by="the site before it sends, and its policy: each step of the curve is of five patients or of nobody, else "
    "nothing of it leaves, nor a mean of it",
    logged="nowhere: what is left leaves",
)
@pytest.mark.parametrize(
    ("patients", "least", "leaves"),
    [
        ((30, 0), 5, True),
        ((30, 1), 5, False),
        ((30, 4), 5, False),
        ((30, 5), 5, True),
        ((30, 9), 10, False),
        ((30, 10), 10, True),
        ((30, 3, 20), 5, False),
        ((3, 30, 20), 5, False),
        ((30, 5, 6, 7), 5, True),
        ((5, 4), 5, False),
        ((9, 0), 5, False),
        ((10, 0), 5, True),
    ],
)
def test_a_sites_curve_leaves_where_each_step_is_of_five_patients(
    task: Detection, patients: tuple[int, ...], least: int, leaves: bool
) -> None:
    sent = leaving(task, in_steps(*patients), least)["evaluation"]
    names = {"map", "ap.nodule", *(metric.name for metric in SENSITIVITIES)}
    assert set(sent["more"]) == (names if leaves else set())
    assert (sent["mean"] is not None) == bool(sent["by_class"]) == bool(sent["interval"]) == leaves
    counts = sent["patients"]
    assert {counts["mean"] % 5, *(count % 5 for count in counts["by_class"].values())} == {0}


def cuts(sent: dict[str, Any], cases: Site) -> Iterator[set[tuple[int, int]]]:
    """Yield the hits, as scan and box, that each number of what leaves counts: nested, from the highest score down."""
    hits = [(n, int(box)) for n, (_, case) in enumerate(cases) for box in np.flatnonzero(case.hits)]
    by_score = sorted(hits, key=lambda hit: -cases[hit[0]][1].scores[hit[1]])
    objects = sum(case.objects for _, case in cases)
    for metric in SENSITIVITIES:
        if (share := sent["evaluation"]["more"].get(metric.name)) is not None:
            yield set(by_score[: round(share * objects)])
    for row in sent.get("pooled", {"targets": {"nodule": {"hits": []}}})["targets"]["nodule"]["hits"]:
        yield {hit for hit in hits if bins_of(cases[hit[0]][1].scores)[hit[1]] >= row[0]}


@given(
    st.integers(5, 60),
    st.floats(0.2, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 8),
    st.integers(0, 10_000),
)
@settings(max_examples=300, deadline=None)
@pytest.mark.attack(
    "objects of one to four patients, from differences of any two numbers that leave, of curve and sums together",
    by="the site before it sends: cells of hits end away from the curve's points, missed objects join the lowest cell",
    logged="nowhere: what is left leaves",
)
def test_no_two_numbers_differ_by_objects_of_few_patients(
    scans: int, objects: float, found: float, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct scores make steps of many patients.
    cases = []
    for number in range(scans):
        there = int(rng.poisson(objects))
        hits = rng.integers(0, levels, rng.binomial(there, 0.5 + found / 2)) / levels
        other = rng.integers(0, levels, rng.poisson(3)) / levels - 0.5 / levels
        scores = np.clip(np.concatenate([hits, other]) * 0.9 + 0.08, 0.05, 1)
        cases.append((f"p{number}", Matched(scores, np.arange(len(scores)) < len(hits), there)))
    sent = leaving(Detection(SPEC, DATA), cases)
    everything = sorted([set[tuple[int, int]](), *cuts(sent, cases)], key=len)
    for fewer, more in pairwise(everything):
        assert fewer <= more
        assert len({cases[scan][0] for scan, _ in more - fewer}) not in range(1, LEAST_PATIENTS)
    sums = sent.get("pooled", {"targets": {"nodule": None}})["targets"]["nodule"]
    missed = {p for p, case in cases if case.objects > case.hits.sum()}
    tells = sent["evaluation"]["mean"] is not None or (sums and sums["with_misses"])
    assert not tells or len(missed) not in range(1, LEAST_PATIENTS)


def patient(objects: int, hits: int, false_positives: int) -> Matched:
    scores = [0.9] * hits + [0.3] * false_positives
    return Matched(np.array(scores), np.arange(len(scores)) < hits, objects)


@pytest.mark.attack(
    "how many of a small site's patients have no object, two of them, or a missed one, from all that leaves",
    by="the site before it sends: it has ten patients or more, and tells of those with objects in fives",
    logged="nowhere: what is left leaves",
)
@pytest.mark.parametrize(
    ("scans", "kinds"),
    [
        *[(scans, [patient(objects, objects, 0) for objects in range(4)]) for scans in (5, 6, 9, 10, 11, 12)],
        *[(scans, [patient(0, 0, count) for count in range(4)]) for scans in (5, 6, 9, 10, 11, 12)],
        (10, [patient(objects, hits, 0) for objects in range(3) for hits in range(objects + 1)]),
    ],
)
def test_what_leaves_pins_no_number_of_one_to_four_patients(task: Detection, scans: int, kinds: list[Matched]) -> None:
    """All sites of such patients: of those that send the same, no number may be the same in all."""
    facts: dict[str, Callable[[Matched], bool]] = {
        "no object": lambda case: case.objects == 0,
        "two objects": lambda case: case.objects >= 2,
        "a missed object": lambda case: case.objects > case.hits.sum(),
        "no false positive": lambda case: bool(case.hits.all()),
        "two false positives": lambda case: (~case.hits).sum() >= 2,
    }
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for patients in combinations_with_replacement(kinds, scans):
        sent = json.dumps(leaving(task, [(f"p{n:02}", case) for n, case in enumerate(patients)]))
        for fact, holds in facts.items():
            found[sent][fact].add(int(sum(map(holds, patients))))
    pinned = {(fact, *numbers) for of_site in found.values() for fact, numbers in of_site.items() if len(numbers) == 1}
    assert not {one for one in pinned if 1 <= one[1] < LEAST_PATIENTS}
    assert any("hits" in sent for sent in found) == (scans >= 10)


def test_steps_of_the_curve_are_of_those_whose_objects_come_in() -> None:
    """Two scans with a false positive between their hits, and one without boxes."""
    case = Matched(np.array([0.9, 0.6, 0.5]), np.array([True, False, True]), 2)
    cases = [("a", case), ("b", case), ("c", boxes([], True, 1)), ("d", boxes([], True, 0))]
    assert sorted(map(sorted, patients_of_steps(cases))) == [["a", "b"], ["a", "b"], ["c"]]
    assert not curve_may_leave(cases)
    many = [(f"{p}{n}", one) for n in range(5) for p, one in cases]
    assert [len(step) for step in patients_of_steps(many)] == [10, 10, 5]
    assert curve_may_leave(many)
    assert not patients_of_steps([("d", boxes([], True, 0))])


def test_intervals_cover_what_other_patients_would_give() -> None:
    """At low rates the threshold, too, is a matter of chance: without it 0.89 are covered."""
    true = sensitivities([case for _, case in site(np.random.default_rng(99), 12000, objects=None)])
    assert true is not None
    rng, inside = np.random.default_rng(5), np.zeros(len(true))
    times = 50
    for _ in range(times):
        found = pooled([site(rng, 100, objects=None), site(rng, 100, objects=None)]).figures
        for n, metric in enumerate(SENSITIVITIES):
            low, high = found[metric.name].interval or (1.0, 0.0)
            inside[n] += low <= true[n] <= high
    assert inside[:3].mean() / times >= 0.94
    assert inside.min() / times >= 0.9


def test_a_lie_about_what_was_missed_is_held_back() -> None:
    sums = froc_sums(found_but(9, 2))
    assert sums
    for name, value in (("with_misses", 0), ("with_misses", 4), ("with_misses", 31), ("squares", 1605)):
        assert not sums_over().is_site_sums({**sums, name: value}, 30)


def test_the_interval_is_as_wide_as_patients_are_few(task: Detection) -> None:
    """Twice the objects in each patient, found together, are no more patients."""
    rng = np.random.default_rng(1)
    once = site(rng, 60)
    twice = [(p, Matched(np.repeat(c.scores, 2), np.repeat(c.hits, 2), 2 * c.objects, 2.0)) for p, c in once]
    found = [pooled([one]).figures["cpm"] for one in (once, twice)]
    widths = [high - low for low, high in (one.interval or (0.0, 0.0) for one in found)]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)
    assert widths[0] > 0.05


def test_the_mean_over_classes_has_an_interval() -> None:
    spec = DetectionSpec(classes={1: "nodule", 2: "mass"})
    both = Detection(spec, DATA)
    rng = np.random.default_rng(4)
    nodules, masses = site(rng, 50), site(rng, 50, shift=-1)
    outcomes = [(p, {"nodule": one, "mass": other}) for (p, one), (_, other) in zip(nodules, masses, strict=True)]
    test = pooled_test({"east": both.pooled(outcomes)}, ["east"], sums_that_may_leave(spec))
    assert test
    assert test.mean
    assert test.mean.title == "CPM (FROC), mean of nodule, mass"
    assert test.mean.value == pytest.approx(both.summarise(outcomes).mean, abs=0.02)
    low, high = test.mean.interval or (1.0, 0.0)
    assert low < test.mean.value < high
    alone = Detection(SPEC, both.data).pooled([(p, {"nodule": one}) for p, one in nodules])
    of_one = pooled_test({"east": alone}, ["east"], sums_that_may_leave(SPEC))
    assert of_one
    assert of_one.mean is None, "one class has its own"


def sent(scans: int = 40) -> dict[str, Any]:
    task_sums = froc_sums(site(np.random.default_rng(3), scans))
    return {"pooled": {"patients": scans, "targets": {"nodule": task_sums}}}


def within(cases: Site, kind: str, low: int, top: int) -> list[tuple[str, np.ndarray]]:
    """Return which boxes of each scan lie in some bins."""
    return [
        (p, (c.hits == (kind == "hits")) & (bins_of(c.scores) >= low) & (bins_of(c.scores) < top)) for p, c in cases
    ]


def check(numbers: dict[str, Any]) -> None:
    check_numbers(numbers, ["nodule"], sums=True, most=40, targets=sums_that_may_leave(SPEC))


def test_counts_pass_the_outbound_check() -> None:
    check(sent())
    check(json.loads(json.dumps(sent(23))))
    with pytest.raises(PolicyError):
        check_numbers(sent(), ["nodule"], targets=sums_that_may_leave(SPEC))  # beside an update


@pytest.mark.attack(
    "single boxes' scores or single patients' objects in the place of counts of boxes",
    by="the site's outbound check: cells of at least five patients, sums within bounds and digits",
    logged="the site's audit log: held back",
)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["patients"], 4),
        (["patients"], 41),
        (["scores"], [0.97, 0.31]),
        (["objects"], 3),
        (["objects"], 17.5),
        (["with_objects"], 4),
        (["with_objects"], 41),
        (["extent"], 40.123),
        (["extent"], float("nan")),
        (["hits", 0, 4], 4),
        (["hits", 0, 4], 40),
        (["hits", 0, 4], 17),
        (["hits", 0, 1], 3),
        (["hits", 0, 1], 4000),
        (["hits", 0, 2], 1.23456),
        (["hits", 0], [120, 1, 0.5, 0.3, 1]),
        (["hits", 0], [120, 5, 0.5, 0.3]),
        (["false_positives", 0, 1], 5000),
        (["false_positives"], "MRN-0001"),
        (["false_positives"], [[0.97, 1]]),
    ],
)
def test_another_shape_is_held_back(path: list[Any], value: Any) -> None:
    numbers = copy.deepcopy(sent())
    inner = numbers["pooled"]["targets"]["nodule"]
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(PolicyError) as caught:
        check(numbers)
    assert str(value) not in str(caught.value)


def test_a_site_that_wants_more_patients_behind_a_number_sends_it_coarser() -> None:
    numbers, cases = sent(), site(np.random.default_rng(3), 40)
    before = copy.deepcopy(numbers["pooled"]["targets"]["nodule"])
    assert withhold(numbers, 12, sums_that_may_leave(SPEC))
    check(numbers)
    after = numbers["pooled"]["targets"]["nodule"]
    for kind in ("hits", "false_positives"):
        assert len(after[kind]) < len(before[kind])
        top = 200
        for lowest, boxes, *_ in after[kind]:
            inside = [(p, int(n.sum())) for p, n in within(cases, kind, lowest, top)]
            assert len({p for p, n in inside if n}) >= 12
            last = kind == "hits" and not lowest
            missed = sum(c.objects - int(c.hits.sum()) for _, c in cases) if last else 0
            assert sum(n for _, n in inside) + missed == boxes
            top = lowest
    assert withhold(numbers, 41, sums_that_may_leave(SPEC))
    assert "pooled" not in numbers


@pytest.mark.parametrize(("bearers", "told"), [(36, 30), (33, 30), (30, 30), (29, 25)])
def test_a_stricter_policy_is_for_those_without_objects_as_well(bearers: int, told: int) -> None:
    rng = np.random.default_rng(1)
    hit = np.array([True, False])
    cases = [(f"p{n}", Matched(rng.uniform(size=2), hit & (n < bearers), int(n < bearers))) for n in range(40)]
    sums = froc_sums(cases)
    assert sums
    assert sums["with_objects"] == bearers // 5 * 5
    coarser = sums_over().withhold(sums, 10)
    assert coarser
    assert coarser["with_objects"] == told
    assert sums_over().is_site_sums(coarser, 40)


@pytest.fixture
def task() -> Detection:
    return Detection(SPEC, DATA)


def test_the_task_sends_its_classes_and_the_server_makes_figures(task: Detection) -> None:
    outcomes = [(p, {"nodule": case}) for p, case in site(np.random.default_rng(4), 40)]
    numbers = {"east": task.pooled(outcomes), "west": task.pooled(outcomes)}
    test = pooled_test(numbers, ["east", "north", "west"], sums_that_may_leave(SPEC))
    assert test
    assert (test.patients, test.withheld) == (80, ["north"])
    told = test.targets["nodule"]
    assert (told.patients, told.sites, told.withheld) == (80, ["east", "west"], ["north"])
    # Twice the same patients have the same curve.
    exact = task.summarise(outcomes).mean
    assert told.figures["cpm"].value == pytest.approx(exact, abs=0.02)
    rates, shares = zip(*told.plots[0].lines[0].points, strict=True)
    assert rates[-1] <= 8
    assert list(shares) == sorted(shares)
    assert told.tables[0].columns[0] == "images"


def test_on_slides_false_positives_count_by_tissue() -> None:
    spec = SlideDetectionSpec(classes={1: "mitosis"}, false_positives="mm2", most_boxes=500)
    (sums,) = sums_that_may_leave(spec).values()
    cases = [(p, Matched(c.scores, c.hits, c.objects, 2.5)) for p, c in site(np.random.default_rng(5), 60)]
    found = sums.over_sites([froc_sums(cases) or {}])
    exact = sensitivities([case for _, case in cases])
    assert found
    assert exact is not None
    assert found.figures["cpm"].value == pytest.approx(exact.mean(), abs=0.01)
    assert found.figures["sensitivity_1"].title == "sensitivity at 1 false positives a mm² of tissue"
    assert found.tables[0].rows["at any score"][0] == 150
