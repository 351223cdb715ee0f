"""Tests of what a site's policy allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from oncofed.errors import PolicyError
from oncofed.privacy.policy import LeavesSpec, Policy, ProposedJob, read_policy

JOB = ProposedJob("spleen", "eve@example.org", "spleen_ct", "unet", "fedavg")


def test_without_rules_everything_may_run_and_rules_are_by_pattern() -> None:
    assert Policy(schema=1).refusal(JOB) is None
    allowed = Policy(
        schema=1, jobs=("sp*",), people=("*@example.org",), datasets=("spleen_ct",), networks=("unet", "segresnet")
    )
    assert allowed.refusal(JOB) is None


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("jobs", "spleen"),
        ("people", "eve@example.org"),
        ("datasets", "spleen_ct"),
        ("networks", "unet"),
        ("strategies", "fedavg"),
    ],
)
def test_a_job_that_does_not_fit_is_refused_with_the_rule_named(rule: str, found: str) -> None:
    refusal = Policy.model_validate({"schema": 1, rule: ["other", "x*"]}).refusal(JOB)
    assert refusal == f"its policy does not allow this job: {rule} has no {found!r}"


def test_case_counts_and_the_digest_is_of_the_meaning(tmp_path: Path) -> None:
    assert Policy(schema=1, networks=("UNET",)).refusal(JOB)
    one, two = Policy(schema=1, jobs=("a",)), Policy.model_validate({"jobs": ["a"], "schema": 1})
    assert one.digest == two.digest != Policy(schema=1).digest


def test_a_broken_policy_lets_nothing_run(tmp_path: Path) -> None:
    assert read_policy(tmp_path) is None
    for text in ("", "[]", '{"schema": 1, "network_s": ["unet"]}', '{"schema": 1, "jobs": []}'):
        (tmp_path / "policy.json").write_text(text)
        with pytest.raises(PolicyError, match="nothing runs there"):
            read_policy(tmp_path)


@pytest.mark.parametrize(
    ("job_hours", "gpu_hours", "gpus", "hours"),
    [(None, None, 4, None), (8.0, None, 4, 8.0), (None, 8.0, 4, 2.0), (1.0, 8.0, 4, 1.0), (None, 8.0, 0, None)],
)
def test_hours_of_gpus_are_shared_by_those_that_a_job_has(
    job_hours: float | None, gpu_hours: float | None, gpus: int, hours: float | None
) -> None:
    assert Policy.model_validate({"job_hours": job_hours, "gpu_hours": gpu_hours}).hours(gpus) == hours


def test_a_site_may_ask_for_masks_and_for_large_sums() -> None:
    required = Policy.model_validate({"schema": 1, "leaves": {"secure_aggregation": "required", "smallest_sum": 4}})
    assert "under masks alone" in str(required.refusal(JOB))
    assert "minimum_sites is 3, expected at least 4" in str(required.refusal(replace(JOB, smallest_sum=3)))
    assert required.refusal(replace(JOB, smallest_sum=4)) is None
    # A job that only looks at the data sends no update.
    assert required.refusal(ProposedJob("profile", None, "spleen_ct")) is None


def test_a_policy_may_have_scores_leave_in_sums_alone() -> None:
    summed = Policy.model_validate({"schema": 1, "leaves": {"scores": "summed"}})
    assert "scores leave in sums alone" in str(summed.refusal(JOB))
    assert summed.refusal(replace(JOB, smallest_sum=3, scores="summed")) is None
    # It has no scores.
    assert summed.refusal(replace(JOB, network=None, strategy=None)) is None
    assert Policy.model_validate({"schema": 1, "leaves": {"scores": "none"}}).refusal(JOB) is None


def test_peers_are_named_by_their_certificates() -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"schema": 1, "leaves": {"peers": ["east"]}})
    Policy.model_validate({"schema": 1, "leaves": {"peers": [":".join(["AB"] * 32), "cd" * 32]}})


def test_a_site_may_refuse_noise_that_sites_make_together() -> None:
    job = replace(JOB, smallest_sum=3, noise_multiplier=1.2, noise="shared")
    assert Policy().refusal(job) is None
    alone = Policy.model_validate({"leaves": {"differential_privacy": {"noise": ["local"]}}})
    assert "its noise is shared, expected local (privacy.differential_privacy.noise)" in str(alone.refusal(job))
    assert alone.refusal(replace(job, noise="local")) is None
    # It has none at all, which another rule is for.
    assert alone.refusal(JOB) is None
    with pytest.raises(ValidationError):
        Policy.model_validate({"leaves": {"differential_privacy": {"noise": []}}})


def test_peers_of_whom_no_sum_can_be_made_are_refused() -> None:
    prints = [f"{number:02x}" * 32 for number in range(3)]
    LeavesSpec(smallest_sum=4, peers=tuple(prints))
    with pytest.raises(ValidationError, match=r"found 2, expected at least 3 \(smallest_sum - 1\)"):
        LeavesSpec(smallest_sum=4, peers=(*prints[:2], prints[0]))
