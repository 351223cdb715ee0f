"""The sections of a job that say how sites work together."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from oncofed.data.spec import Modality
from oncofed.settings import StrictModel
from oncofed.suppression import LEAST_PATIENTS

ExchangeType = Literal["native", "bfloat16", "int8"]


class RoundsSpec(StrictModel):
    """When a round ends, and who takes part in it."""

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
        description="an update that comes after its round: taken into the next one with less weight, or left out",
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
            raise ValueError(
                f"quorum is {self.quorum}, but only {self.sites_per_round} sites are asked (sites_per_round)"
            )
        return self


class _Strategy(StrictModel):
    """What all strategies have in common."""


class FedAvgSpec(_Strategy):
    """The mean of the updates, weighted by training cases (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProxSpec(_Strategy):
    """Sites are held near the global model (Li et al., MLSys 2020)."""

    name: Literal["fedprox"]
    mu: float = Field(0.01, ge=0, le=100, description="weight of half the squared distance to the global model")


class FedBNSpec(_Strategy):
    """Batch normalisation stays at each site (Li et al., ICLR 2021); the model that is left holds its mean."""

    name: Literal["fedbn"]


class ServerOptimizerSpec(_Strategy):
    """The mean update is a gradient for an optimizer at the server (Reddi et al., ICLR 2021; Hsu et al., 2019)."""

    name: Literal["fedavgm", "fedadam", "fedyogi"]
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="of the server; null: 1 for fedavgm, 0.01 for fedadam and fedyogi"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of the mean update (beta 1)")
    second_momentum: float = Field(0.99, ge=0, lt=1, description="of its square (beta 2); fedadam, fedyogi")
    tau: float = Field(1e-3, gt=0, le=1, description="smallest scale of a step; fedadam, fedyogi")


class ScaffoldSpec(_Strategy):
    """Control variates take out the drift between sites (Karimireddy et al., ICML 2020)."""

    name: Literal["scaffold"]
    learning_rate: float = Field(1.0, gt=0, le=10, description="of the server")


class FedNovaSpec(_Strategy):
    """Updates are divided by the steps behind them before they are averaged (Wang et al., NeurIPS 2020)."""

    name: Literal["fednova"]


class FedDynSpec(_Strategy):
    """Each site's loss is bent so that sites agree where the global one is least (Acar et al., ICLR 2021)."""

    name: Literal["feddyn"]
    alpha: float = Field(0.01, gt=0, le=10)


class DittoSpec(_Strategy):
    """Beside the global model each site trains one of its own, held near it (Li et al., ICML 2021)."""

    name: Literal["ditto"]
    mu: float = Field(0.1, ge=0, le=100, description="weight of half the squared distance to the global model")


class CyclicSpec(_Strategy):
    """The model travels from site to site, each trains it further (Chang et al., JAMIA 2018)."""

    name: Literal["cyclic"]


class SwarmSpec(_Strategy):
    """A site, drawn anew each round, averages what the others send it (Warnat-Herresthal et al., Nature 2021).

    The server leads the rounds and keeps the mean model; it sees no site's update.
    """

    name: Literal["swarm"]


class MedianSpec(_Strategy):
    """The median of each weight over the sites (Yin et al., ICML 2018)."""

    name: Literal["median"]


class TrimmedMeanSpec(_Strategy):
    """The mean of each weight over the sites without the largest and smallest (Yin et al., ICML 2018)."""

    name: Literal["trimmed_mean"]
    trim: float = Field(0.25, gt=0, lt=0.5, description="share of the sites that is left out at each end")


class KrumSpec(_Strategy):
    """The mean of the updates that lie nearest to the others (Blanchard et al., NeurIPS 2017)."""

    name: Literal["krum"]
    poisoned: int = Field(1, ge=0, le=500, description="sites that may be bad")
    keep: int | None = Field(None, ge=1, le=1000, description="updates to average; null: all but the bad; 1: Krum")


class ClippedMeanSpec(_Strategy):
    """No update is longer than the median one (norm clipping; Sun et al., 2019)."""

    name: Literal["clipped_mean"]


class FedBuffSpec(_Strategy):
    """Sites never wait: the server takes a step whenever so many updates lie in its buffer (Nguyen et al., 2022)."""

    name: Literal["fedbuff"]
    buffer: int = Field(2, ge=1, le=1000, description="updates of a step, which is what a round is here")
    learning_rate: float = Field(1.0, gt=0, le=10, description="of the server")


StrategySpec = Annotated[
    FedAvgSpec
    | FedProxSpec
    | FedBNSpec
    | ServerOptimizerSpec
    | ScaffoldSpec
    | FedNovaSpec
    | FedDynSpec
    | DittoSpec
    | CyclicSpec
    | SwarmSpec
    | MedianSpec
    | TrimmedMeanSpec
    | KrumSpec
    | ClippedMeanSpec
    | FedBuffSpec,
    Field(discriminator="name"),
]


STRATEGY_SPECS: dict[str, type[StrictModel]] = {
    name: spec for spec in _Strategy.__subclasses__() for name in get_args(spec.model_fields["name"].annotation)
}


class ExchangeSpec(StrictModel):
    """In which form weights travel. Sites always send what they changed, not what they have."""

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

    select: Literal["mean", "worst", "weighted"] = Field(
        "mean", description="of the sites' validation scores: their mean, the worst, or their mean weighted by cases"
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
    margin: float | None = Field(
        None, gt=0, lt=1, description="by how much worse than another model (--against) still counts as no worse"
    )


class FederationPlan(StrictModel):
    """How the sites of one job work together."""

    rounds: RoundsSpec = RoundsSpec()
    strategy: StrategySpec = FedAvgSpec()
    exchange: ExchangeSpec = ExchangeSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _rounds_fit_the_strategy(self) -> FederationPlan:
        strategy, rounds = self.strategy, self.rounds
        if isinstance(strategy, CyclicSpec) and (rounds.sites_per_round or rounds.quorum):
            raise ValueError("cyclic asks one site after the other: leave quorum and sites_per_round away")
        if isinstance(strategy, FedBuffSpec) and (
            rounds.quorum or rounds.sites_per_round or rounds.deadline_s or rounds.late == "drop"
        ):
            raise ValueError(
                "fedbuff takes every update as it comes: leave quorum, deadline_s, sites_per_round and late: drop away"
            )
        if rounds.deadline_s is not None and rounds.quorum is None and not isinstance(strategy, CyclicSpec):
            raise ValueError("rounds.deadline_s needs a quorum: how many updates are enough when the time is up?")
        if isinstance(strategy, SwarmSpec) and self.evaluation.cross_site:
            raise ValueError("swarm gives no site's model to the server: leave evaluation.cross_site away")
        if isinstance(strategy, KrumSpec) and rounds.quorum and rounds.quorum < 2 * strategy.poisoned + 3:
            raise ValueError(
                f"krum with {strategy.poisoned} bad sites needs a quorum of {2 * strategy.poisoned + 3}, "
                f"found {rounds.quorum}"
            )
        return self


class ProfilePlan(StrictModel):
    """What each site tells of its data in a federated profile."""

    dataset: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="name under which every site registers its folder"
    )
    modality: Modality = Field("mri", description="decides in which units intensities are compared")
    dimensions: int = Field(3, ge=2, le=3, description="3: volumes, 2: flat images")
    classes: dict[int, str] = Field({}, description="label value -> name, whose shares of the image are compared")
    minimum_count: int = Field(
        LEAST_PATIENTS, ge=LEAST_PATIENTS, description="fewest patients behind any number that leaves a site"
    )
    noise: float = Field(
        0.0, ge=0, le=100, description="scale of Laplace noise on each number, in units of what one patient adds"
    )
    bins: int = Field(56, ge=4, le=400, description="of each histogram; 56 are quarters of an octave")
