"""A site without training, to measure the exchange alone."""

from __future__ import annotations

from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

import oncofed
from oncofed.flare import wire
from oncofed.flare.executor import SiteExecutor
from oncofed.flare.wire import TASK_PREPARE, TASK_TRAIN
from oncofed.messages.compression import Compressor
from oncofed.models.weights import Weights

_OF_ONE = {"all": 1, "mean": 1, "by_class": {}, "more": {}}
_SCORE = {"mean": 0.5, "by_class": {}, "more": {}, "interval": None, "cases": 1, "patients": _OF_ONE}


class Echo(SiteExecutor):
    """Answers every task of a job without touching data."""

    _delta: Weights | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Return counts, an update that is a tenth of the first model, or a score."""
        del fl_ctx, abort_signal
        if task_name == TASK_PREPARE:
            cases = {"train": 1, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__}
            return wire.numbers_message(cases)
        numbers: dict[str, Any] = {"evaluation": _SCORE, "validate_s": 0.0}
        if task_name != TASK_TRAIN:
            return wire.numbers_message(numbers)
        sent, _, _, _ = wire.read_weights_message(shareable)
        if self._delta is None:
            # The same one in each round: making it is training, not exchange.
            self._delta = {n: value * 0.1 if value.is_floating_point() else value for n, value in sent.items()}
        compressed = Compressor(self._federation.exchange.update).compress(self._delta)
        numbers |= {"loss": 0.0, "train_s": 0.0}
        return wire.update_message(compressed, {}, 1, 1, numbers)
