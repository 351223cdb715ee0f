"""A job's sections about how sites train together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from oncofed.settings import SettingError, StrictModel

ExchangeType = Literal["native", "bfloat16", "int8"]
# Models that a site can train for itself after the last round.
Trained = Literal["fine_tuned", "mixed", "alone"]
Share = Annotated[float, Field(gt=0, lt=1)]


class AlgorithmSettings(StrictModel):
    """Base of the section ``strategy``; ``name`` names the algorithm."""

    name: str = Field(description="name of an algorithm")


class RoundsSpec(StrictModel):
    """When a round ends, and who takes part."""

    number: int = Field(5, ge=1, le=10_000, description="how often weights are exchanged")
    quorum: int | None = Field(
        None, ge=1, le=1000, description="fewest updates that end a round; null: one of every site that was asked"
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        le=30 * 86_400,
        description="a round that has its quorum ends after this many seconds, whoever is still training; with cyclic, "
        "each site's turn does; null: never",
    )
    late: Literal["discount", "drop"] = Field(
        "discount",
        description="an update that comes after its round: taken into the next one with less weight, or left out; with "
        "privacy.secure_aggregation always left out",
    )
    staleness: float = Field(
        0.5, ge=0, le=10, description="an update that is n rounds late weighs (1 + n)^-staleness (FedAsync, FedBuff)"
    )
    minimum_cases: int = Field(1, ge=1, description="sites with fewer training cases only score the model")
    sites_per_round: int | None = Field(
        None, ge=1, le=1000, description="so many sites, drawn anew each round, train; null: all"
    )
    return_s: float = Field(
        600, gt=0, le=7 * 86_400, description="a round without its quorum waits this long for lost sites, then gives up"
    )

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> RoundsSpec:
        if self.quorum and self.sites_per_round and self.quorum > self.sites_per_round:
            raise SettingError(
                f"found {self.quorum}, but only {self.sites_per_round} sites are asked (sites_per_round)", "quorum"
            )
        return self


class ExchangeSpec(StrictModel):
    """In which form weights travel.

    Sites always send changes, not weights.
    """

    update: ExchangeType = Field(
        "native",
        description="type of the sites' updates; what bfloat16 and int8 round away is added to the next update",
    )
    model: Literal["native", "bfloat16"] = Field("native", description="type of the global model on its way to sites")
    largest_norm: float = Field(
        5.0, gt=1, le=1000, description="an update this many times as long as the usual one is refused"
    )
    largest_weight: float = Field(
        20.0, ge=1, le=1e6, description="a site counts as at most this many times the cases of the median site"
    )


class EvaluationSpec(StrictModel):
    """Which round's model is kept, and when to stop."""

    select: Literal["mean", "worst", "weighted", "last"] = Field(
        "mean",
        description="best by the sites' validation scores: their mean, the worst, or their mean weighted by cases; "
        "last: the last round's, where too few validation patients tell rounds apart, such as of outcomes",
    )
    patience: int | None = Field(
        None, ge=1, le=10_000, description="rounds without a better score after which the run ends; null: never"
    )
    cross_site: bool = Field(
        False, description="at the end, each site's own last model is scored on every site's test cases"
    )
    most_cases: int = Field(
        500,
        ge=5,
        le=1_000_000,
        description="validation cases of a site that a round looks at: a sample by class and patient, the same in each "
        "round; the test at the end looks at all test cases",
    )
    doubtful_labels: bool = Field(
        False,
        description="at the end, each site lists for itself which of its cases have labels that disagree with the "
        "model's answers; nothing of it leaves",
    )
    contributions: bool = Field(
        False,
        description="the report shows how alike each site's updates are to the others', where all sites' policies "
        "agree (leaves.contributions)",
    )
    margin: float | None = Field(
        None, gt=0, lt=1, description="by how much worse than another model (--against) still counts as no worse"
    )

    @model_validator(mode="after")
    def _last_needs_all_rounds(self) -> Self:
        if self.select == "last" and self.patience is not None:
            raise ValueError("select: last keeps the last round's model: leave patience out, which ends a run early")
        return self


class PersonalizationSpec(StrictModel):
    """Which model each site keeps after the last round.

    It compares candidates on its validation patients, and keeps the federated model unless another is surely better.
    """

    candidates: tuple[Trained, ...] = Field(
        ("fine_tuned", "mixed"),
        description="beside the federated model, and the personal one of ditto: fine_tuned, trained on from it on the "
        "site's own cases; mixed, means of its and the fine-tuned weights (Wortsman et al., CVPR 2022); alone, trained "
        "from the initial weights on the site's own cases, which takes the time of the federation's training again",
    )
    steps: int | None = Field(
        None, ge=1, le=100_000, description="optimizer steps of fine-tuning; null: those of two rounds"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="at the start of fine-tuning; null: a tenth of the job's"
    )
    shares: tuple[Share, ...] = Field(
        (0.25, 0.5, 0.75), min_length=1, max_length=9, description="of the fine-tuned weights in the mixed ones"
    )
    level: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="probability that no worse model than the federated one is kept, whichever of them is chosen",
    )

    @field_validator("candidates", "shares")
    @classmethod
    def _are_named_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("expected each once")
        return values

    @model_validator(mode="after")
    def _mixtures_are_of_something(self) -> Self:
        if "mixed" in self.candidates and "fine_tuned" not in self.candidates:
            raise SettingError("mixed is of fine-tuned weights: add fine_tuned", "candidates")
        return self
