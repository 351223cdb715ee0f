"""Settings that cannot be told what to do are refused in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from harmonizing_sites import feature_job, table_job
from oncofed.data.harmonization.sums import SumsForm
from oncofed.report.preparation import Distances, HarmonizationUse


@pytest.mark.parametrize(
    ("harmonization", "words"),
    [
        ({"columns": ["weight"]}, "found weight, expected the name of a column in data.covariates"),
        ({"columns": ["sex"]}, "found sex, which has categories, expected a number"),
        ({"columns": ["volume"], "preserve": ["Volume"]}, "found volume in columns as well"),
        ({"preserve": ["age"]}, "is for features or columns.*, and the job has neither"),
        ({"features": "combat"}, "is of slides' tiles, found a network of"),
        ({"intensity": "landmarks"}, "is of images, found a network of"),
    ],
)
def test_what_does_not_fit_is_refused(harmonization: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table_job(harmonization=harmonization).plan()


def test_slides_have_no_landmarks_and_no_two_templates() -> None:
    with pytest.raises(ValueError, match="whose values have no unit"):
        feature_job(harmonization={"intensity": "landmarks"}).plan()
    with pytest.raises(ValueError, match=r"found combat beside data.stain.normalise: macenko"):
        feature_job(stain={"normalise": "macenko"}).plan()


def test_sums_have_no_place_beside_differential_privacy() -> None:
    private = {"differential_privacy": {"noise_multiplier": 1.0, "sampling": 0.1, "delta": 1e-5}}
    with pytest.raises(ValueError, match=r"found features beside privacy.differential_privacy.*leave without noise"):
        feature_job({"privacy": private}, covariates=[], harmonization={"features": "combat"}).plan()


def test_the_form_follows_from_the_job() -> None:
    assert table_job().plan().sums_form == SumsForm({"columns": 2}, 2)
    assert feature_job().plan().sums_form == SumsForm({"features": 24}, 1)
    assert table_job(harmonization={}).plan().sums_form == SumsForm({}, 0)


def test_a_bundle_and_the_table_alone_know_what_they_lack() -> None:
    plan = feature_job(covariates=[], harmonization={"features": "combat"}).plan()
    assert "a site's own shift and scale" in plan.bundle_lacks
    alone = feature_job().plan().of_table_alone()
    assert alone is not None
    assert alone.data.harmonization.groups == ()


def test_the_report_says_before_and_after() -> None:
    told = {"east": {"features": Distances(before=1.5, after=0.1, factor_before=1.4, factor_after=1.02)}}
    use = HarmonizationUse(features="combat", preserved=["age"], sites=told)
    assert list(use.said()) == [
        ("Made alike between sites (ComBat)", "features; the effect of age is kept"),
        (
            "east, features, before and after",
            "means 1.50 and 0.10 spreads from the common ones; spreads differ by a factor of 1.40 and 1.02",
        ),
    ]
