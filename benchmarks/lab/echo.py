"""A site without training, to measure the exchange alone."""

from __future__ import annotations

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

import oncofed
from oncofed.flare import wire
from oncofed.flare.executor import SiteExecutor
from oncofed.messages.compression import Compressor
from oncofed.messages.requests import PrepareRequest, TrainRequest
from oncofed.messages.results import EvaluateResult, Result, SiteFacts, TrainResult
from oncofed.models.weights import Weights

_OF_ONE = {"all": 1, "mean": 1, "by_class": {}, "more": {}}
_SCORE = {"mean": 0.5, "by_class": {}, "more": {}, "interval": None, "cases": 1, "patients": _OF_ONE}


class Echo(SiteExecutor):
    """Answers every task of a job without touching data."""

    _delta: Weights | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer with counts, a scaled model, or a score.

        The update is a tenth of the first model.
        """
        del fl_ctx, abort_signal
        return wire.to_shareable(self._echo(task_name, shareable))

    def _echo(self, task_name: str, shareable: Shareable) -> Result:
        if task_name == PrepareRequest.task:
            cases = {"train": 1, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__}
            return SiteFacts(cases)
        numbers: dict[str, Any] = {"evaluation": _SCORE, "validate_s": 0.0}
        request = wire.read_request(task_name, shareable)
        if not isinstance(request, TrainRequest):
            return EvaluateResult(numbers)
        if self._delta is None:
            # The same one in each round: computing it is training, not exchange.
            self._delta = {n: v * 0.1 if v.is_floating_point() else v for n, v in request.weights.items()}
        compressed = Compressor(self._federation.exchange.update).compress(self._delta)
        numbers |= {"loss": 0.0, "train_s": 0.0}
        return TrainResult(delta=compressed, cases=1, steps=1, numbers=numbers)
