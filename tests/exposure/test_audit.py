"""The one-run audit: what right guesses show."""

from __future__ import annotations

import pytest

from oncofed.exposure.audit import at_least, audit
from oncofed.privacy.settings import DifferentialPrivacySpec


@pytest.mark.parametrize(("guesses", "most"), [(80, 3.27), (400, 4.89), (1000, 5.81), (4000, 7.20)])
def test_the_most_that_right_guesses_can_show(guesses: int, most: float) -> None:
    assert at_least(guesses, guesses, guesses, delta=0) == pytest.approx(most, abs=0.01)


def test_guesses_by_chance_show_nothing_and_a_delta_shows_less() -> None:
    assert at_least(100, 200, 1000, delta=0) == 0
    assert 0 < at_least(176, 200, 1000, delta=1e-3) < at_least(176, 200, 1000, delta=0)


def test_it_shows_less_than_is_claimed_and_less_with_more_noise() -> None:
    shown = []
    for noise in (0.8, 4.0):
        private = DifferentialPrivacySpec(noise_multiplier=noise, delta=1e-5, sampling=0.16)
        found = audit(private, steps=20, key=bytes(32))
        assert found is not None
        shown.append(found.epsilon_at_least)
    assert shown[0] > 0.5 > shown[1]
    assert shown[0] < 12


def test_long_jobs_are_not_audited() -> None:
    private = DifferentialPrivacySpec(noise_multiplier=1.0, delta=1e-5, sampling=0.5)
    assert audit(private, steps=100_000, key=bytes(32)) is None
