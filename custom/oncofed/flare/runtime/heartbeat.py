"""Send heartbeats of simulated sites.

FLARE's job processes send one every ten seconds, its simulator's send none: a site that computes, or waits for a
compute slot, would count as lost.
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

# The interval of FLARE's job processes.
_SECONDS_BETWEEN = 10.0


class Heartbeat:
    """Sends a heartbeat after ten seconds without another message."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.note_sent()

    def begin(self, fl_ctx: FLContext) -> None:
        """Start if the site is simulated."""
        if fl_ctx.get_job_id() == SimulatorConstants.JOB_NAME:
            threading.Thread(target=self._send, args=[fl_ctx.get_engine()], name="heartbeat", daemon=True).start()

    def note_sent(self) -> None:
        """Note that the site sends another message now."""
        self._last = time.monotonic()

    def end(self) -> None:
        """Stop."""
        self._over.set()

    def _send(self, engine: Any) -> None:
        # Wake as rarely as possible: many sites share one machine.
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
