"""Model cards, from a run's result and provenance.

Sections are those of Mitchell et al., Model Cards for Model Reporting (FAT* 2019). ``card.json`` holds them, and
``monai`` with the names that a MONAI bundle's metadata has for the same. ``card.md`` begins with the metadata of a
Hugging Face model card (``model-index``; huggingface.co/docs/hub/model-cards), which other programs read.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from oncofed.algorithms.plan import FederationPlan
from oncofed.atomic import write_whole
from oncofed.data.grouping import counted
from oncofed.privacy.statement import PrivacyStatement
from oncofed.report.evaluation import EvaluationRecord
from oncofed.report.preparation import EncoderUse, HarmonizationUse, StainUse
from oncofed.report.result import Result, SiteResult, SiteTiles
from oncofed.report.sums import SumsUsed
from oncofed.signing import signer
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.calibration import Calibration
from oncofed.tasks.over_sites import PooledTest
from oncofed.tasks.targets import TargetDetails, details_of
from oncofed.training import Plan

CARD_JSON, CARD_MARKDOWN = "card.json", "card.md"
FEW = f"fewer than {LEAST_PATIENTS}"
NOT_REPORTED = "not reported"
_NO_NOISE = "none: the training is not differentially private"
INTENDED_USE = "Research only. Not a medical device."

Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ModelDetails(_Part):
    """The model."""

    name: str
    title: str
    task: str = Field(description="type of the job's task")
    classes: dict[str, str] = Field(description="value of the output -> name; empty for named targets")
    targets: dict[str, TargetDetails] = Field({}, description="named targets that it answers")
    stated_by: dict[str, int] = Field({}, description="target -> test patients of all sites who state it, where known")
    codes: dict[str, str] = Field({}, description="value of the output -> its code, such as SCT:78961009")
    network: str
    encoder: EncoderUse | None = Field(None, description="of slides' tiles, which is no part of the weights")
    parameters: int = Field(description="number of values of all weights, with normalisation")
    digest: str | None = Field(description="SHA-256 of the weights; null: no provenance")
    signed_by: str | None = Field(description="server that signed the provenance; null: it is not signed")
    ended: str | None = None
    licence: str | None = Field(None, description="as the job names it")
    contact: str | None = Field(None, description="as the job names it")


class TrainingSite(_Part):
    """A site's training data."""

    train_cases: int | str
    validation_cases: int | str
    dataset: str | None = Field(None, description="SHA-256 of its dataset.json")
    tiles: SiteTiles | None = Field(None, description="of its training slides; null: not told, or no slides")


class TrainingData(_Part):
    """Training data, without small or unknown numbers of patients."""

    dataset: str
    modality: str
    channels: list[str]
    spacing: list[float] | None = Field(description="mm of the working grid; null: each image's own")
    patch: list[int]
    note: str = ""
    stain: StainUse | None = Field(None, description="what was done about stains; null: nothing")
    harmonization: HarmonizationUse | None = Field(
        None, description="what was done about sites that measure differently; null: nothing"
    )
    sites: dict[str, TrainingSite]


class Procedure(_Part):
    """The training."""

    strategy: str
    rounds: int
    best_round: int | None
    steps_per_round: int
    batch_size: int = Field(description="not used under differential privacy: see promise")
    learning_rate: float
    loss: str
    augmentation: str
    seed: int
    settings: dict[str, Any] = Field(description="the job's sections training, rounds, strategy and exchange, in full")


class SiteScores(_Part):
    """Scores on a site's held-out patients."""

    test_cases: int | str
    value: float | None = Field(description="the metric; null for fewer than five patients")
    interval: Interval | None = Field(description="95 %, bootstrap over patients")
    by_class: dict[str, float] = Field({}, description="of classes of at least five patients")
    more: dict[str, float] = Field({}, description="further figures of at least five patients")


class Fairness(_Part):
    """Spread over the sites with published scores."""

    worst_site: str
    worst: float
    spread: float = Field(description="standard deviation over the sites")


class Quantitative(_Part):
    """Scores."""

    metric: str
    metric_name: str
    sites: dict[str, SiteScores]
    mean: float | None = Field(description="over the sites with published scores")
    fairness: Fairness | None = None
    over_sites: PooledTest | None = Field(None, description="the test patients of all sites together")
    calibration: Calibration | None = Field(None, description="as calibration.json has it; null: it has none")
    evaluation: EvaluationRecord | None = Field(None, description="of another dataset, and by subgroup")


class Privacy(_Part):
    """Data that left the sites."""

    travelled: str
    update: str = Field(description="type of the updates")
    sums: SumsUsed | None = Field(None, description="of masked updates; null: the server was given each update")
    noise: str
    promise: PrivacyStatement | None = Field(None, description="to each training patient; null: none")


class Card(_Part):
    """A model card."""

    schema_: Literal[1] = Field(1, alias="schema")
    model_details: ModelDetails
    intended_use: str = INTENDED_USE
    training_data: TrainingData
    training_procedure: Procedure
    quantitative_analyses: Quantitative
    privacy: Privacy
    caveats_and_recommendations: list[str]
    environment: dict[str, str]
    monai: dict[str, Any] = Field(description="the same under the names of a MONAI bundle's metadata")

    def to_json(self) -> str:
        """Return ``card.json``."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"


def make_card(
    result: Result,
    signed: Mapping[str, Any],
    plan: Plan,
    federation: FederationPlan,
    named: Mapping[str, str] | None = None,
    evaluation: EvaluationRecord | None = None,
) -> Card:
    """Return the card of a run's model.

    Args:
        result: of the run.
        signed: content of ``provenance.json``; empty without one.
        plan: of the training.
        federation: of the rounds.
        named: ``licence`` and ``contact`` of the job.
        evaluation: of the model on a dataset.
    """
    provenance: Mapping[str, Any] = signed.get("provenance", {})
    environment = {**result.environment, **provenance.get("versions", {})}
    scores, targets = _quantitative(result, evaluation), details_of(plan.task)
    details = ModelDetails(
        name=result.job,
        title=result.title,
        task=plan.task.type,
        classes={} if targets else {str(value): name for value, name in plan.task.classes.items()},
        targets=targets,
        stated_by={name: one.patients for name, one in result.pooled_test.targets.items()}
        if result.pooled_test
        else {},
        codes={str(value): _code(code) for value, code in (getattr(plan.task, "codes", None) or {}).items()},
        network=plan.model.network,
        encoder=result.encoder,
        parameters=sum(values.numel() for values in plan.layout().weights.values()),
        digest=provenance.get("model"),
        signed_by=signer(signed) if signed.get("signature") else None,
        ended=provenance.get("ended"),
        licence=(named or {}).get("licence") or None,
        contact=(named or {}).get("contact") or None,
    )
    return Card(
        model_details=details,
        training_data=_training_data(result, provenance, plan),
        training_procedure=_procedure(result, plan, federation),
        quantitative_analyses=scores,
        privacy=_privacy(federation, result),
        caveats_and_recommendations=_caveats(result, plan, scores),
        environment=environment,
        monai=_monai(details, plan, scores, environment),
    )


def write_card(card: Card, folder: Path) -> None:
    """Write ``card.json`` and ``card.md`` atomically."""
    from oncofed.report.card_text import to_markdown  # noqa: PLC0415 - it describes this module's cards

    write_whole(folder / CARD_JSON, card.to_json())
    write_whole(folder / CARD_MARKDOWN, to_markdown(card))


def _code(code: Any) -> str:
    """Return a coded term in a job's notation."""
    values = code.model_dump() if isinstance(code, BaseModel) else {}
    return f"{values['scheme']}:{values['value']}" if {"scheme", "value"} <= set(values) else str(code)


def _count(cases: int, patients: int | None) -> int | str:
    """Return a number of cases of five patients or more.

    Five cases may all be of one patient.
    """
    if cases < LEAST_PATIENTS or (patients is not None and patients < LEAST_PATIENTS):
        return FEW
    return cases if patients is not None else NOT_REPORTED


def _training_data(result: Result, provenance: Mapping[str, Any], plan: Plan) -> TrainingData:
    digests = {site: facts.get("dataset") for site, facts in provenance.get("sites", {}).items()}
    return TrainingData(
        dataset=plan.data.dataset,
        modality=plan.data.modality,
        channels=list(plan.data.channels),
        spacing=list(plan.data.spacing) if plan.data.spacing else None,
        patch=list(plan.data.patch),
        note=result.data_note,
        stain=result.stain,
        harmonization=result.harmonization,
        sites={
            name: TrainingSite(
                train_cases=_count(site.train_cases, site.patients.get("train")),
                validation_cases=_count(site.validation_cases, site.patients.get("validation")),
                dataset=digests.get(name),
                tiles=site.tiles,
            )
            for name, site in sorted(result.sites.items())
        },
    )


def _procedure(result: Result, plan: Plan, federation: FederationPlan) -> Procedure:
    training = plan.training
    return Procedure(
        strategy=federation.strategy.name,
        rounds=result.rounds,
        best_round=result.best_round,
        steps_per_round=training.steps_per_round,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        loss=training.loss or plan.build_task().loss_name,
        augmentation=training.augmentation,
        seed=plan.seed,
        settings={
            "training": training.model_dump(mode="json"),
            **federation.model_dump(mode="json", include={"rounds", "strategy", "exchange"}),
        },
    )


def _quantitative(result: Result, evaluation: EvaluationRecord | None) -> Quantitative:
    sites = {}
    for name, site in sorted(result.sites.items()):
        # Only scores of at least five patients have an interval.
        interval = site.interval.get("federated")
        shown = interval is not None
        sites[name] = SiteScores(
            test_cases=site.test_cases if shown else _count(site.test_cases, site.patients.get("test")),
            value=site.federated if shown else None,
            interval=interval,
            by_class=_of_enough(site.by_class.get("federated", {}), site) if shown else {},
            more=_of_enough(site.more.get("federated", {}), site) if shown else {},
        )
    known = {name: site.value for name, site in sites.items() if site.value is not None}
    fairness = None
    if len(known) > 1 and result.is_of_same_targets:
        worst = min(known, key=lambda name: known[name])
        fairness = Fairness(worst_site=worst, worst=known[worst], spread=statistics.pstdev(known.values()))
    return Quantitative(
        metric=result.metric,
        metric_name=result.metric_name,
        sites=sites,
        mean=statistics.fmean(known.values()) if known else result.scores_of_all and result.scores_of_all.mean,
        fairness=fairness,
        over_sites=result.pooled_test,
        calibration=result.calibration,
        evaluation=evaluation,
    )


def _of_enough(figures: Mapping[str, float], site: SiteResult) -> dict[str, float]:
    """Return figures of at least five patients of a site."""
    behind = site.patients_behind
    return {name: value for name, value in figures.items() if behind.get(name, 0) >= LEAST_PATIENTS}


def _privacy(federation: FederationPlan, result: Result) -> Privacy:
    promise, sums = result.privacy, result.sums
    swarm = not federation.algorithm().schedule.reaches_server
    way = "from site to site: the server sees means only" if swarm else "to the server"
    if sums:
        way = "to the server, under masks that it can lift from sums alone"
    cases = "numbers of cases" if promise else "numbers of cases, losses"
    scores = "scores as their sum over the sites" if result.scores_of_all else "scores as means, counts and sums"
    return Privacy(
        travelled=f"updates of the weights, {way}; {scores}; {cases}. "
        "Images, labels and the scores of single patients stayed",
        update=federation.exchange.update,
        sums=sums,
        noise=f"{promise.noise}: in each step of each site" if promise else _NO_NOISE,
        promise=promise,
    )


def _caveats(result: Result, plan: Plan, scores: Quantitative) -> list[str]:
    sites = len(result.sites)
    found = [
        f"It knows images of {counted(sites, 'site')}. Elsewhere it may do worse: evaluate it there.",
        _answers_alone(plan),
    ]
    if result.encoder and result.encoder.unknown:
        found.append(
            f"Which weights of {result.encoder.network} made the features of {', '.join(result.encoder.unknown)} is "
            "not known: features of other weights would be read wrongly, and nobody would notice."
        )
    if plan.data.size_range or plan.data.spacing_range:
        ranges = (("voxels a side", plan.data.size_range), ("mm a voxel", plan.data.spacing_range))
        said = ", ".join(f"{pair[0]:g} to {pair[1]:g} {unit}" for unit, pair in ranges if pair)
        found.append(f"It was trained on images of {said}.")
    silent = sum(site.value is None for site in scores.sites.values())
    if silent:
        found.append(f"Of {silent} of the sites no score is told: {FEW} test patients, or none was found.")
    if scores.calibration is None and plan.build_task().label_kind == "class":
        found.append("Its probabilities were not calibrated.")
    if not scores.evaluation or not scores.evaluation.subgroups:
        found.append("It was not evaluated by subgroup.")
    return found


def _answers_alone(plan: Plan) -> str:
    targets = details_of(plan.task)
    if not targets:
        return f"It tells {', '.join(plan.task.classes.values())} apart, and nothing else that an image may show."
    asked = "; ".join(f"{name} ({one.kind}): {one.asks}" for name, one in targets.items())
    likely = (
        " What it says of the future holds for patients like those of the sites, treated as they were."
        if any(one.kind == "survival" for one in targets.values())
        else ""
    )
    return f"It answers {asked}; and nothing else that an image may show.{likely}"


def _monai(details: ModelDetails, plan: Plan, scores: Quantitative, environment: Mapping[str, str]) -> dict[str, Any]:
    names = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
    return {
        **{key: environment[package] for key, package in names.items() if package in environment},
        "task": details.title,
        "authors": "the sites of the federation",
        "copyright": details.licence or "see the agreement of the alliance",
        "intended_use": INTENDED_USE,
        "data_source": plan.data.dataset,
        "data_type": plan.data.modality,
        "pred_classes": ", ".join(f"{value}: {name}" for value, name in details.classes.items())
        or "; ".join(f"{name}: {one.asks}" for name, one in details.targets.items()),
        "eval_metrics": {scores.metric: scores.mean},
    }
