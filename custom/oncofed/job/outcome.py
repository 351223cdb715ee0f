"""Fills a run's result from its record."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec
from oncofed.machine import environment
from oncofed.messages.compression import travelling_bytes
from oncofed.messages.secure_aggregation import summed_bytes
from oncofed.privacy.statement import statement_of
from oncofed.report.gains import contributions_of, gains_of
from oncofed.report.preparation import Distances, EncoderUse, HarmonizationUse, StainUse
from oncofed.report.result import Backend, Bytes, Fairness, Means, Result, SiteResult, SiteTiles
from oncofed.report.sums import ScoresOfAll, sums_used
from oncofed.rounds.encoders import ENCODER, is_unknown
from oncofed.rounds.events import SumFailed
from oncofed.tasks import Evaluation
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.deletion import Deletion
from oncofed.tasks.differences import Difference
from oncofed.tasks.encoder import EncoderSpec, feature_count
from oncofed.tasks.over_sites import PooledTest
from oncofed.tasks.parts import NO_PARTS, Parts, comparable_means
from oncofed.tasks.targets import details_of
from oncofed.training.plan import REFERENCES

# Site or "pooled" -> site whose test cases they are -> scores.
Scores = dict[str, dict[str, Evaluation]]

POOLED = "pooled"
_ALL_SITES = "all sites"
_MICRONS = 1000  # of a millimetre


def begin_result(spec: JobSpec, backend: Backend, data_note: str = "") -> Result:
    """Return an empty result with status "failed"."""
    task = spec.plan().build_task()
    return Result(
        job=spec.name,
        title=spec.title,
        status="failed",
        backend=backend,
        rounds=spec.rounds.number,
        strategy=spec.strategy.name,
        select=spec.evaluation.select,
        metric=task.metric,
        metric_name=task.metric_name,
        classes=list(spec.task.classes.values()),
        targets=details_of(spec.task),
        seed=spec.seed,
        privacy=statement_of(spec.privacy.differential_privacy, spec.plan().total_steps),
        data_note=data_note,
        gains=None if spec.personalization is None else {},
        environment=environment(),
    )


def note_incidents(result: Result, state: RunProgress) -> None:
    """Copy participation and incidents, also of a failed run."""
    result.lost_sites = state.lost
    result.participation = {str(number): who for number, who in sorted(state.participation.items())}
    result.incidents = [incident.record() for incident in state.incidents]


def note_rounds(result: Result, state: RunProgress, spec: JobSpec) -> None:
    """Copy durations, losses and scores of the rounds.

    Args:
        result: to write to.
        state: of the run.
        spec: the job; its model and compression give the bytes.
    """
    timing = result.timing
    timing.rounds_s = state.rounds_s
    timing.train_s_max_per_round = state.slowest_site_s
    over = [a - b for a, b in zip(state.rounds_s, state.slowest_site_s, strict=True)]
    # A site that was asked again may report the seconds of an earlier process.
    timing.overhead_s_per_round = max(sum(over) / len(over), 0.0) if over else None
    failed, federation = sum(isinstance(one, SumFailed) for one in state.incidents), spec.federation()
    result.sums = sums_used(state.sums, failed, federation.bits, spec.scores)
    result.bytes = _bytes(spec, len(state.cases))
    if spec.evaluation.contributions:
        result.contributions = contributions_of(state.similarity, state.validation)
    result.curves = {
        "validation": {str(k): v for k, v in state.validation.items()},
        "validation_by_site": {str(k): v for k, v in state.validation_by_site.items()},
        "loss": {str(k): v or _of_all(state.loss_of_all.get(k)) for k, v in state.losses.items()},
    }


def _of_all(loss: float | None) -> dict[str, float]:
    return {} if loss is None else {_ALL_SITES: loss}


def note_preparation(result: Result, state: RunProgress, spec: JobSpec) -> None:
    """Copy what images and values went through before the network.

    Args:
        result: to write to.
        state: of the run.
        spec: the job.
    """
    plan = spec.plan()
    encoder, stain = getattr(plan.task, "encoder", None), plan.data.stain
    if isinstance(encoder, EncoderSpec):
        told = (cases.get(ENCODER) for _, cases in sorted(state.cases.items()))
        result.encoder = EncoderUse(
            network=encoder.network,
            features=feature_count(encoder),
            digest=encoder.digest or next(filter(None, told), None),
            tile=plan.data.patch[0],
            mpp=plan.data.spacing[0] * _MICRONS if plan.data.spacing else None,
            unknown=sorted(site for site, cases in state.cases.items() if is_unknown(cases)),
        )
    if stain.is_used:
        names = [column.name for column in stain.columns]
        agreed = state.agreed if names else None
        result.stain = StainUse(
            normalise=stain.normalise,
            augment=stain.augment,
            sites=None if agreed is None else sorted({site for name in names for site in agreed.get(name, ())}),
            published=[name for name in names if agreed is not None and name not in agreed],
        )
    _note_harmonization(result, state, spec)


def _note_harmonization(result: Result, state: RunProgress, spec: JobSpec) -> None:
    """Copy what was done about sites that measure differently."""
    chosen, agreed = spec.data.harmonization, state.harmonized
    if not chosen.is_used:
        return
    sites = agreed.sites if agreed else {}
    names = ("before", "after", "factor_before", "factor_after")
    result.harmonization = HarmonizationUse(
        intensity=chosen.intensity,
        features=chosen.features,
        columns=list(chosen.columns),
        preserved=list(chosen.preserve),
        sites={
            site: {group: Distances(**dict(zip(names, found, strict=True))) for group, found in groups.items()}
            for site, groups in sites.items()
        },
        constant=sum(agreed.constant.values()) if agreed else 0,
    )


def note_scores(
    result: Result,
    state: RunProgress,
    scores: Scores | None = None,
    skipped: Mapping[str, int] | None = None,
    parts: Parts = NO_PARTS,
) -> None:
    """Copy test scores of the best model and baselines.

    A site's means are over the targets that all of its models have a figure of.

    Args:
        result: to write to.
        state: of a run that finished.
        scores: of the baselines, where they were trained.
        skipped: numbers of cases set aside, by site.
        parts: of the metric, in a job with targets.
    """
    assert state.finished is not None
    scores, skipped = scores or {}, skipped or {}
    result.baselines_have_noise = bool(scores) and result.privacy is not None
    result.best_round = state.finished.best_round
    for site, cases in sorted(state.cases.items()):
        federated = state.finished.test.get(site, {"mean": None, "by_class": {}})
        trained = {"alone": site, POOLED: POOLED, **{name: name for name in REFERENCES}}
        found = {model: scores.get(name, {}).get(site) for model, name in trained.items()}
        compared = {model: evaluation for model, evaluation in found.items() if evaluation}
        by_class = {"federated": federated["by_class"], **{name: e.by_class for name, e in compared.items()}}
        more = {"federated": federated.get("more", {}), **{name: e.extra_metrics for name, e in compared.items()}}
        intervals = {"federated": federated.get("interval"), **{n: e.interval for n, e in compared.items()}}
        own = (state.finished.personal or {}).get(site, {})
        means = {"federated": federated["mean"], **{model: evaluation.mean for model, evaluation in compared.items()}}
        means["personal"] = own.get("mean")
        in_mean = None
        if parts:
            shown = {**by_class, **({"personal": own.get("by_class", {})} if own else {})}
            alike = comparable_means(parts, shown)
            in_mean, means = alike.targets, {name: alike.means.get(name) for name in means}
            # Draws have the parts that are left out, too.
            intervals = {name: ends for name, ends in intervals.items() if name in alike.whole}
        result.sites[site] = SiteResult(
            train_cases=cases["train"],
            validation_cases=cases["validation"],
            test_cases=cases["test"],
            skipped_cases=skipped.get(site, 0),
            **means,
            in_mean=in_mean,
            by_class=by_class,
            more=more,
            interval={name: interval for name, interval in intervals.items() if interval},
            tiles=SiteTiles.model_validate(cases["tiles"]) if cases.get("tiles") else None,
            **_patients(federated.get("patients")),
        )
    result.cross_site = state.finished.cross_site
    result.gains = None if result.gains is None else gains_of(state.finished.gains)
    note_pooled(
        result, pooled=state.finished.pooled, paired=state.finished.paired, calibration=state.finished.calibration
    )
    attention = state.finished.attention
    result.attention = Deletion.model_validate(attention) if attention else None
    known = {site: r.federated for site, r in result.sites.items() if r.federated is not None}
    if known and result.is_of_same_targets:
        worst = min(known, key=lambda site: known[site])
        spread = statistics.pstdev(known.values())
        result.fairness = Fairness(worst_site=worst, worst=known[worst], spread=spread)
    result.mean = Means(
        **{name: _mean(getattr(site, name) for site in result.sites.values()) for name in Means.model_fields}
    )
    if state.summed_scores:
        result.scores_of_all = ScoresOfAll(**_known_of_all(state.finished.summed))
        result.mean.federated = result.scores_of_all.mean


def _known_of_all(summed: Mapping[str, Any] | None) -> dict[str, Any]:
    found = {"sites": 0, "patients": 0, **(summed or {})}
    return {name: value for name, value in found.items() if name in ScoresOfAll.model_fields}


def _patients(reported: Mapping[str, Any] | None) -> dict[str, dict[str, int]]:
    """Return numbers of test patients, overall and per figure."""
    if not reported:
        return {}
    return {"patients": {"test": reported["all"]}, "patients_behind": {**reported["by_class"], **reported["more"]}}


def note_pooled(
    result: Result,
    *,
    pooled: dict[str, Any] | None,
    paired: dict[str, Any] | None,
    calibration: dict[str, Any] | None,
) -> None:
    """Copy figures over the patients of all sites."""
    result.calibration = Calibration.model_validate(calibration) if calibration else None
    result.pooled_test = PooledTest.model_validate(pooled) if pooled else None
    result.paired_test = Difference.model_validate(paired) if paired else None


def _bytes(spec: JobSpec, sites: int) -> Bytes:
    layout, weights = spec.layout, spec.layout.sent
    federation = spec.federation()
    algorithm = federation.algorithm()
    extra_from_site = travelling_bytes(algorithm.from_clients(layout), "native")
    extra_for_site = travelling_bytes(algorithm.for_clients_layout(layout), "native")
    if spec.privacy.secure_aggregation:
        to_server = sites * summed_bytes(spec.plan(), federation, layout, federation.bits)
    elif algorithm.schedule.reaches_server:
        to_server = sites * (travelling_bytes(weights, spec.exchange.update) + extra_from_site)
    else:
        to_server = travelling_bytes(weights, "native")  # the mean; updates go from site to site
    to_sites = sites * (travelling_bytes(weights, spec.exchange.model) + extra_for_site)
    return Bytes(to_sites_per_round=to_sites, to_server_per_round=to_server)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
