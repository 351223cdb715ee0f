"""ComBat from sums is ComBat of all patients in one place, and says what it cannot tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oncofed.data.harmonization.combat import (
    Common,
    Numbers,
    Shift,
    Sums,
    agree,
    distances,
    harmonized,
    shift_of,
    sums_of,
)
from oncofed.errors import DataError

_KNOWN = json.loads((Path(__file__).parent / "neurocombat.json").read_text())


def _pooled(values: Numbers, covariates: Numbers, site: Numbers) -> Numbers:
    """Return what the published formulas make of all patients at once, one step after the other."""
    names = np.unique(site)
    batches = (site[:, None] == names).astype(float)
    design = np.concatenate([batches, covariates], axis=1)
    found = np.linalg.lstsq(design, values, rcond=None)[0]
    shares = batches.mean(axis=0)
    expected = shares @ found[: len(names)] + covariates @ found[len(names) :]
    spread = np.sqrt(((values - design @ found) ** 2).mean(axis=0))
    standard = (values - expected) / spread
    result = np.empty_like(values)
    for name in names:
        own = standard[site == name]
        gamma, delta, count = own.mean(axis=0), own.var(axis=0, ddof=1), len(own)
        gamma_bar, tau = gamma.mean(), gamma.var(ddof=1)
        mean, variance = delta.mean(), delta.var(ddof=1)
        lam, theta = mean**2 / variance + 2, mean**3 / variance + mean
        g, d = gamma, delta
        for _ in range(200):
            g = (count * tau * gamma + d * gamma_bar) / (count * tau + d)
            d = (theta + ((own - g) ** 2).sum(axis=0) / 2) / (count / 2 + lam - 1)
        result[site == name] = (own - g) / np.sqrt(d) * spread + expected[site == name]
    return result


def _federated(values: Numbers, covariates: Numbers, site: Numbers) -> Numbers:
    names = np.unique(site)
    sums = {name: sums_of(values[site == name], covariates[site == name]) for name in names}
    common = agree(list(sums.values()))
    result = np.empty_like(values)
    for name in names:
        own = site == name
        result[own] = harmonized(values[own], covariates[own], common, shift_of(sums[name], common))
    return result


def _made(seed: int, sizes: tuple[int, ...] = (12, 20, 31), numbers: int = 40) -> tuple[Numbers, Numbers, Numbers]:
    rng = np.random.default_rng(seed)
    site = np.repeat(np.arange(len(sizes)), sizes)
    age = rng.normal(60, 10, len(site)) + 4 * site
    covariates = np.stack([age, rng.integers(0, 2, len(site))], axis=1)
    values = rng.normal(size=(len(site), numbers)) * np.linspace(0.5, 3, numbers) + 100
    values += covariates @ rng.normal(0, 0.2, (2, numbers))
    values += rng.normal(0, 2, (len(sizes), numbers))[site]
    return values * np.exp(rng.normal(0, 0.05, (len(sizes), numbers)))[site], covariates, site


@pytest.mark.parametrize("covariates", ["with age and sex", "without covariates"])
def test_it_is_what_neurocombat_makes_of_all_patients_in_one_place(covariates: str) -> None:
    values, site = np.array(_KNOWN["values"]), np.array(_KNOWN["site"])
    kept = np.stack([_KNOWN["sex"], _KNOWN["age"]], axis=1).astype(float)
    found = _federated(values, kept if covariates.startswith("with ") else kept[:, :0], site)
    np.testing.assert_allclose(found, _KNOWN[covariates], rtol=0, atol=2e-8)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_published_formula_of_all_patients_in_one_place(seed: int) -> None:
    values, covariates, site = _made(seed)
    np.testing.assert_allclose(_federated(values, covariates, site), _pooled(values, covariates, site), atol=1e-8)
    none = covariates[:, :0]
    np.testing.assert_allclose(_federated(values, none, site), _pooled(values, none, site), atol=1e-8)


def test_the_shift_goes_and_the_effect_of_age_stays() -> None:
    rng = np.random.default_rng(1)
    site = np.repeat([0, 1], 200)
    age = np.where(site, 50, 70) + rng.normal(0, 8, 400)
    values = 0.1 * age[:, None] * np.ones(30) + rng.normal(size=(400, 30)) + 5.0 * site[:, None]
    found = _federated(values, age[:, None], site)
    slope = np.polyfit(age, found.mean(axis=1), 1)[0]
    assert slope == pytest.approx(0.1, abs=0.01)
    apart = found[site == 1].mean() - found[site == 0].mean()
    assert apart == pytest.approx(0.1 * (age[site == 1].mean() - age[site == 0].mean()), abs=0.1)


def test_distances_shrink() -> None:
    values, covariates, site = _made(3)
    sums = [sums_of(values[site == name], covariates[site == name]) for name in range(3)]
    common = agree(sums)
    for one in sums:
        before, after, factor_before, factor_after = distances(one, common)
        assert after < before / 3
        assert 1 <= factor_after < factor_before


def test_a_site_that_had_no_part_finds_its_own_shift() -> None:
    values, covariates, site = _made(4, (40, 40, 40), 60)
    common = agree([sums_of(values[site == name], covariates[site == name]) for name in (0, 1)])
    late = site == 2
    before = np.abs(values[late].mean(axis=0) - common.mean) / common.spread
    own = shift_of(sums_of(values[late], covariates[late]), common)
    x = np.full_like(covariates[late], np.nan)  # of nobody is an age known: the mean stands for it
    assert np.isfinite(harmonized(values[late], x, common, own)).all()
    found = harmonized(values[late], covariates[late], common, own)
    expected = common.mean + (covariates[late].mean(axis=0) - common.covariates) @ common.effects
    after = np.abs(found.mean(axis=0) - expected) / common.spread
    assert after.mean() < before.mean() / 5


def test_the_order_of_sites_decides_nothing() -> None:
    values, covariates, site = _made(5)
    sums = [sums_of(values[site == name], covariates[site == name]) for name in range(3)]
    one, other = agree(sums), agree(sums[::-1])
    np.testing.assert_allclose(one.effects, other.effects, rtol=1e-9)
    np.testing.assert_allclose(one.spread, other.spread, rtol=1e-9)


def test_a_value_that_never_varies_stays_as_it_is() -> None:
    values, covariates, site = _made(6)
    values[:, 3] = 7.0
    found = _federated(values, covariates, site)
    assert (found[:, 3] == 7.0).all()
    others = np.delete(np.arange(40), 3)
    np.testing.assert_allclose(found[:, others], _federated(values[:, others], covariates, site), atol=1e-9)


def test_a_value_that_is_constant_at_one_site_alone_is_finite() -> None:
    values, covariates, site = _made(7)
    values[site == 0, 2] = 3.0
    assert np.isfinite(_federated(values, covariates, site)).all()
    assert np.isfinite(_federated(values[:, 2:3], covariates[:, :0], site)).all()


def test_of_one_value_what_was_found_stands() -> None:
    """Priors need several values: mean and spread become the common ones exactly."""
    values, _, site = _made(8, numbers=1)
    found = _federated(values, np.zeros((len(site), 0)), site)
    means = [found[site == name].mean() for name in range(3)]
    assert np.ptp(means) == pytest.approx(0, abs=1e-9)
    spreads = [found[site == name].std(ddof=1) for name in range(3)]
    assert np.ptp(spreads) == pytest.approx(0, abs=1e-9)


def _sums(**changes: Any) -> list[Sums]:
    values, covariates, site = _made(9)
    covariates = changes.get("covariates", lambda x, s: x)(covariates, site)
    values = changes.get("values", lambda y: y)(values)
    return [sums_of(values[site == name], covariates[site == name]) for name in range(3)]


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        (lambda: _sums()[:1], "found sums of 1 site, expected two at least"),
        (list, "found sums of 0 sites, expected two at least"),
        (
            lambda: [*_sums()[:2], sums_of(np.ones((4, 40)), np.ones((4, 2)))],
            "found a site with 4 patients, expected 5",
        ),
        (lambda: _sums(values=np.ones_like), "the same in every patient, expected some that vary"),
        (
            lambda: _sums(covariates=lambda x, s: np.stack([x[:, 0], s], axis=1).astype(float)),
            "sex goes with the site.*Leave it out of data.harmonization.preserve",
        ),
        (
            lambda: _sums(covariates=lambda x, s: np.stack([50.0 + 20 * s + 0.1 * x[:, 1], x[:, 1]], axis=1)),
            "age goes with the site",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(sums: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        agree(sums(), ["age", "sex"])


def test_covariates_that_go_together_at_every_site_are_no_obstacle() -> None:
    """Age in months beside age in years: what they say together is told."""
    values, covariates, site = _made(10)
    twice = np.concatenate([covariates, 12 * covariates[:, :1]], axis=1)
    np.testing.assert_allclose(_federated(values, twice, site), _federated(values, covariates, site), atol=1e-6)


def test_four_patients_tell_no_shift() -> None:
    common = Common(np.zeros(3), np.ones(3), np.zeros((0, 3)), np.zeros(0))
    with pytest.raises(DataError, match="told from 5 patients at least, found fewer"):
        shift_of(sums_of(np.random.default_rng(1).normal(size=(4, 3)), np.zeros((4, 0))), common)


def test_no_shift_changes_nothing() -> None:
    values, covariates, _ = _made(11)
    common = Common(values.mean(0), values.std(0), np.zeros((2, 40)), covariates.mean(0))
    found = harmonized(values, covariates, common, Shift(np.zeros(40), np.ones(40)))
    np.testing.assert_allclose(found, values, rtol=1e-12)
