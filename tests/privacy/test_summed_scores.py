"""Scores as words of a sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oncofed.privacy.pooled import SUMS
from oncofed.privacy.secure_aggregation.figures import added_by
from oncofed.privacy.secure_aggregation.ring import Scale, dequantise, quantise
from oncofed.privacy.summed_scores import FACTOR, LOSS, MEAN, SCORES, ScoreForm
from oncofed.tasks.metrics import Metric

FORM = ScoreForm(["shell", "core"], [Metric("hd95_mm", per_class=True, bounds=(0, 100_000)), Metric("pq")])
_NUMBERS = {
    "loss": 0.25,
    "evaluation": {
        "mean": 0.5,
        "by_class": {"shell": 0.75, "core": float("nan")},
        "more": {"hd95_mm.shell": 12.5, "strange": 1.0},
        "interval": None,
        "cases": 9,
        "patients": {"all": 9, "mean": 9, "by_class": {"shell": 9}, "more": {}},
    },
    "train_s": 3.0,
}


def _summed(sites: list[torch.Tensor]) -> torch.Tensor:
    """Add up in the ring, as the server has it once masks are off."""
    scale = Scale(32, 2.0**-24, len(sites) * FACTOR)
    words = torch.stack([quantise(one, FACTOR, scale) for one in sites])
    return dequantise(words.sum(0, dtype=torch.int32), scale)


def test_figures_that_the_job_declares_are_found() -> None:
    found = {FORM.figures[at]: pair for at, pair in FORM.found_in(_NUMBERS).items()}
    expected = {"loss": 0.25, "mean": 0.5, "patients": 9.0, "class.shell": 0.75, "more.hd95_mm.shell": 12.5}
    assert found == {name: (value, 1.0) for name, value in expected.items()}
    by_cases = ScoreForm(["shell", "core"], [], by_cases=True)
    weights = {by_cases.figures[at]: weight for at, (_, weight) in by_cases.found_in(_NUMBERS).items()}
    # Were the mean and its parts weighted otherwise, they would be two equations for the same scores.
    assert weights == {"loss": 1.0, "patients": 1.0, "mean": 9.0, "class.shell": 9.0}
    assert by_cases.figures.index(MEAN) in by_cases.alone
    assert FORM.found_in({"evaluation": None, "loss": 0.5}) == {}
    assert FORM.bits(FORM.found_in({"evaluation": None, "loss": 0.5})) == bytes(1)
    found = FORM.found_in(_NUMBERS)
    assert added_by(FORM.bits(found)) == found.keys()


def test_all_that_tells_of_a_model_is_a_score() -> None:
    assert SUMS | {"loss", "evaluation", "personal", "attention"} <= SCORES


@given(
    st.lists(
        st.tuples(st.floats(-1e5, 1e5, allow_subnormal=False), st.integers(1, 1_000_000)), min_size=1, max_size=255
    )
)
def test_the_mean_over_any_sites_is_theirs(sites: list[tuple[float, int]]) -> None:
    at = FORM.figures.index(LOSS)
    told = FORM.decoded(_summed([FORM.encoded({at: (value, float(weight))}, {at}) for value, weight in sites]))
    exact = sum(value * weight for value, weight in sites) / sum(weight for _, weight in sites)
    assert told.loss == pytest.approx(exact, rel=1e-3, abs=1e-6)
    assert told.mean is None


def test_what_is_not_to_be_in_a_sum_is_zero() -> None:
    found = FORM.found_in(_NUMBERS)
    assert not FORM.encoded(found, set()).any()
    only = {FORM.figures.index(MEAN)}
    told = FORM.decoded(_summed([FORM.encoded(found, only)] * 3))
    assert (told.mean, told.loss, told.by_class, told.patients) == (0.5, None, {}, 0)
