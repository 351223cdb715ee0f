"""Signs of life of a simulated site, by which the server knows that it still computes or waits for its turn.

FLARE's job processes send a heartbeat every ten seconds; the processes of its simulator send none.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from nvflare.apis.fl_constant import ReservedTopic
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

# As often as FLARE's job processes.
_SECONDS_BETWEEN = 10.0


class Heartbeat:
    """Sends a sign from a thread whenever nothing else was sent for ten seconds, where a site is simulated."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.note_sent()

    def begin(self, fl_ctx: FLContext) -> None:
        """Send from now on, unless FLARE does."""
        if fl_ctx.get_job_id() == SimulatorConstants.JOB_NAME:
            threading.Thread(target=self._send, args=[fl_ctx.get_engine()], name="signs-of-life", daemon=True).start()

    def note_sent(self) -> None:
        """Note that the server hears of the site by another message now."""
        self._last = time.monotonic()

    def end(self) -> None:
        """Send none any more."""
        self._over.set()

    def _send(self, engine: Any) -> None:
        # The thread wakes as seldom as can be: with many sites on one machine each time counts.
        while not self._over.wait(max(self._last + _SECONDS_BETWEEN - time.monotonic(), 0.0)):
            if time.monotonic() - self._last < _SECONDS_BETWEEN:
                continue
            self.note_sent()
            with engine.new_context() as context:
                engine.send_aux_request(
                    targets=[FQCN.ROOT_SERVER],
                    topic=ReservedTopic.JOB_HEART_BEAT,
                    request=Shareable(),
                    timeout=0.0,
                    fl_ctx=context,
                    optional=True,
                )
