"""Sites that train together in memory, beside each alone and all of them pooled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from oncofed.client.in_memory import InProcessSite, train_in_memory
from oncofed.client.local_training import SiteContext
from oncofed.data.cases import Cases, pool_cases, usable_cases
from oncofed.job.spec import JobSpec
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER
from oncofed.tasks import Evaluation
from oncofed.training import Plan, Trainer
from oncofed.training.baselines import Baseline, train_baseline


def cases_of(plan: Plan, sites: Mapping[str, Path]) -> dict[str, Cases]:
    """Return the cases of each site."""
    return {
        site: usable_cases(data, plan.data, plan.supervision(), plan.seed, site).cases for site, data in sites.items()
    }


def evaluations(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> dict[str, Evaluation]:
    """Return scores on all sites' test patients, of models trained together and of all data in one place."""
    judge = trained_together(spec, sites, folder)
    cases = pool_cases(cases_of(spec.plan(), sites))
    pooled = _trained(spec.plan(), cases, cases, folder, spec.evaluation.select == "last")
    return {"federated": judge.evaluate(judge.cases.test), "pooled": pooled}


def scores(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> dict[str, float]:
    """Return the metric over all sites' test patients, by the way a model was trained."""
    judge = trained_together(spec, sites, folder)
    found = {"federated": known(judge.evaluate(judge.cases.test).mean)}
    return found | pooled_and_alone(spec, sites, folder)


def trained_together(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> Trainer:
    """Return a trainer over all sites' cases, with the weights of their federated model."""
    plan = spec.plan()
    judge = Trainer(plan, pool_cases(cases_of(plan, sites)), "pooled")
    judge.load_weights(load_file(federated(spec, sites, folder)))
    return judge


def pooled_and_alone(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> dict[str, float]:
    """Return the score of all data in one place, and the mean of each site's own model, on all sites' test patients."""
    plan, last = spec.plan(), spec.evaluation.select == "last"
    cases = cases_of(plan, sites)
    pooled = pool_cases(cases)
    alone = [known(_trained(plan, own, pooled, folder, last).mean) for own in cases.values()]
    return {"pooled": known(_trained(plan, pooled, pooled, folder, last).mean), "alone": float(np.mean(alone))}


def known(score: float | None) -> float:
    """Return a score that the cases can tell."""
    assert score is not None
    return score


def _trained(plan: Plan, own: Cases, tested: Cases, folder: Path, last: bool) -> Evaluation:
    baseline = Baseline("baseline", own, {"all": tested.test}, own.validation, keeps_last=last)
    return train_baseline(plan, baseline, folder, None)["all"]


def federated(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> Path:
    """Train together in memory, and return the best model's file."""
    plan, federation = spec.plan(), spec.federation()
    running = {
        site: InProcessSite(plan, federation, SiteContext(site=site, data=data, state=folder / site))
        for site, data in sites.items()
    }
    train_in_memory(plan, federation, running, folder, record=lambda event: None)
    return folder / MODELS_FOLDER / BEST_MODEL
