"""What a site is asked first counts for the whole job."""

from __future__ import annotations

from oncofed.messages.requests import EvaluateRequest, SumsAsked
from oncofed.models.weights import Weights, digest_of


class FirstAsked:
    """The job's thresholds, temperatures and tested model, as they came first."""

    def __init__(self) -> None:
        self._known: SumsAsked | None = None
        self._tested = ""

    def accepted(self, asked: SumsAsked | None) -> SumsAsked:
        """Return the thresholds and temperatures to count by: the first that the job gave, for good.

        By others and others again, exact figures would tell single patients' probabilities.
        """
        if asked is None or not (asked.thresholds or asked.temperatures):
            return SumsAsked()
        self._known = self._known or asked
        return self._known

    def is_tested(self, request: EvaluateRequest, weights: Weights, *, chooses_thresholds: bool) -> bool:
        """Return whether this is the first model that is tested with the job's thresholds.

        Figures that depend on a threshold leave of that one alone: of others, whose outputs are shifted a little each,
        they would tell single patients' answers.

        Args:
            request: of the server.
            weights: all of the model's.
            chooses_thresholds: the job's task does.
        """
        chosen = (self._known and self._known.thresholds) or not chooses_thresholds
        if request.split != "test" or request.sums is None or not chosen:
            return False
        digest = str(digest_of(weights))
        self._tested = self._tested or digest
        return digest == self._tested
