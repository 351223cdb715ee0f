"""How the sites of one job train together."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.fedavg import FedAvg
from oncofed.algorithms.registry import ALGORITHMS, algorithm_class
from oncofed.algorithms.schedule import Synchronous
from oncofed.algorithms.settings import AlgorithmSettings, EvaluationSpec, ExchangeSpec, PersonalizationSpec, RoundsSpec
from oncofed.algorithms.sums import check_sums
from oncofed.plugins import read_section
from oncofed.privacy.settings import SecureAggregationSpec
from oncofed.settings import SettingError, StrictModel


def _settings_by_name(value: Any) -> AlgorithmSettings:
    """Return the settings of the algorithm in section ``strategy``.

    ``strategy: fedadam`` is short for ``strategy: {name: fedadam}``.
    """
    if isinstance(value, AlgorithmSettings):
        return value
    if isinstance(value, str):
        value = {"name": value}
    settings: AlgorithmSettings = read_section(ALGORITHMS, "name", value)
    return settings


StrategySection = Annotated[SerializeAsAny[AlgorithmSettings], BeforeValidator(_settings_by_name)]


class FederationPlan(StrictModel):
    """How the sites of one job train together."""

    rounds: RoundsSpec = RoundsSpec()
    strategy: StrategySection = FedAvg.Settings()
    exchange: ExchangeSpec = ExchangeSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    personalization: PersonalizationSpec | None = None
    secure_aggregation: SecureAggregationSpec | None = None
    lost: int = Field(0, ge=0, description="as privacy.differential_privacy.lost")

    @model_validator(mode="after")
    def _sections_fit_together(self) -> FederationPlan:
        algorithm = self.algorithm()
        algorithm.check_settings(self.rounds, self.evaluation)
        if self.evaluation.contributions:
            self._check_contributions(algorithm)
        if self.secure_aggregation:
            check_sums(algorithm, self.secure_aggregation, self.rounds, self.evaluation, self.exchange)
        return self

    def _check_contributions(self, algorithm: Algorithm[Any]) -> None:
        if self.secure_aggregation:
            why = "the server is given sums of updates alone (privacy.secure_aggregation)"
        elif not isinstance(algorithm.schedule, Synchronous):
            why = f"with {algorithm.settings.name} sites do not train one model at a time side by side at the server"
        else:
            return
        raise SettingError(f"found true, but {why}: leave it out", "evaluation.contributions")

    @property
    def updates_reach_server(self) -> bool:
        """Whether the server is given each site's update."""
        return self.algorithm().schedule.reaches_server and not self.secure_aggregation

    @property
    def sums_scores(self) -> bool:
        """Whether the server is given the sum of the sites' scores alone."""
        return self.secure_aggregation is not None and self.secure_aggregation.scores == "summed"

    @property
    def bits(self) -> int:
        """Of a masked word."""
        return self.secure_aggregation.bits if self.secure_aggregation else 32

    @property
    def smallest_sum(self) -> int | None:
        """Fewest sites in a sum of masked updates; None: no masks."""
        return self.smallest_roster - self.lost if self.smallest_roster else None

    @property
    def smallest_roster(self) -> int | None:
        """Fewest sites that begin a sum of masked updates; None: no masks."""
        return self.secure_aggregation.minimum_sites if self.secure_aggregation else None

    def algorithm(self, parameters: frozenset[str] = frozenset()) -> Algorithm[Any]:
        """Return the job's algorithm.

        Args:
            parameters: names of the trained weights, which the server's half needs.
        """
        return algorithm_class(self.strategy.name)(self.strategy, parameters)
