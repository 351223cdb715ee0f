"""Results of a site's job, with their outbound policy."""

from __future__ import annotations

from typing import Any

import torch

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.client.secure_aggregation import Identity
from oncofed.flare.security.masked_steps import OwnKeys
from oncofed.flare.security.outbound_policy import OutboundPolicy
from oncofed.job.spec import JobSpec
from oncofed.models.weights import Weights, exchanged_names, weights_of
from oncofed.privacy.policy import Policy
from secure_sums import JOB, PLAN, mac_signer, mac_verify

EVALUATION = {
    "mean": 0.5,
    "by_class": {"shell": 0.5},
    "more": {},
    "interval": None,
    "cases": 9,
    "patients": {"all": 9, "mean": 9, "by_class": {"shell": 9}, "more": {}},
}
NUMBERS = {"loss": 1.0, "train_s": 1.0, "validate_s": 1.0, "evaluation": EVALUATION}
COUNTS = {"train": 9, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__}


def policy_of(
    spec: JobSpec, federation: dict[str, Any] | None = None, ends: float | None = None, **leaves: Any
) -> OutboundPolicy:
    policy = Policy.model_validate({"schema": 1, "leaves": leaves, "job_hours": 1.0})
    federation_plan = FederationPlan.model_validate(federation or {})
    own = own_keys() if federation_plan.secure_aggregation else None
    return OutboundPolicy(plan=spec.plan(), federation=federation_plan, policy=policy, ends=ends, own=own)


def own_keys(site: str = "site-00") -> OwnKeys:
    identity = Identity(site=site, sign=mac_signer(site), certificates=b"PEM", verify=mac_verify)
    return OwnKeys(job=JOB, plan_digest=PLAN, identity=identity)


def delta_of(spec: JobSpec, seed: int = 0, factor: float = 1.0) -> Weights:
    network = spec.plan().build_network()
    generator = torch.Generator().manual_seed(seed)
    names = exchanged_names(network)
    return {
        n: torch.randn(v.shape, generator=generator) * factor if v.is_floating_point() else v
        for n, v in weights_of(network).items()
        if n in names
    }
