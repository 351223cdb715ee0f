"""A site's wait for its next task.

FLARE polls twenty times a second. Here a site asks once: the server replies as soon as a task exists, or sends a
directive later. Where a brief step is expected to follow it does not ask at all, but fetches: the server holds the
request until there is a task.
"""

from __future__ import annotations

import threading
import time

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from oncofed.flare import wire
from oncofed.flare.patches.aux_senders import refuse_other_sites

# How long to wait for a reply that may be lost with a server process; the server replies sooner.
_REPLY_SECONDS = 6.0
# Longest delay until an abort is seen; a directive is seen at once.
_SECONDS_BETWEEN_POLLS = 2.0
# After this long a site asks again, whatever the server said: its answer may be another's, or broken.
_LONGEST_PAUSE_SECONDS = 60.0


class TaskPull:
    """Waits for directives of the server.

    FLARE's runner fetches a task, executes it and submits the result, in one thread; ``before_submit`` and
    ``after_submit`` are called around the last step.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._directive: wire.Directive | None = None
        self._pause = 0.0
        self._submitted = self._fetches = False

    def listen(self, fl_ctx: FLContext) -> None:
        """Receive directives from now on."""
        refuse_other_sites(wire.TOLD_TOPIC)
        fl_ctx.get_engine().register_aux_message_handler(wire.TOLD_TOPIC, self._receive)

    def before_submit(self) -> None:
        """Forget directives about earlier tasks."""
        self._received.clear()

    def after_submit(self, step_follows: bool = False) -> None:
        """Expect a directive, now that the server has the result.

        Args:
            step_follows: whether the next task is most likely a brief step.
        """
        # A server that keeps no requests waiting would not hold one for a task either.
        self._submitted, self._fetches = True, step_follows and not self._pause

    def wait(self, fl_ctx: FLContext) -> bool:
        """Wait for a task, or the job's end.

        Returns:
            Whether there is a task for which the site has to line up for a compute slot, as far as the server reported.
        """
        fetches, self._fetches = self._fetches, False
        if fetches:
            return False
        signal = fl_ctx.get_run_abort_signal()
        # A server that keeps no requests waiting sends a directive to each site that submitted a result.
        pause, self._submitted = self._pause if self._submitted else 0.0, False
        while True:
            directive = self._receive_within(pause, signal)
            if directive or (signal and signal.triggered):
                return directive == "come"
            self._received.clear()
            reply = self._ask(fl_ctx)
            directive = wire.get_directive(reply) if reply else None
            if reply is None or directive != "wait":
                return directive == "come"
            pause = self._pause = min(max(wire.get_pause(reply), 0.0), _LONGEST_PAUSE_SECONDS)

    def _ask(self, fl_ctx: FLContext) -> Shareable | None:
        engine = fl_ctx.get_engine()
        with engine.new_context() as context:
            replies = engine.send_aux_request(
                targets=[FQCN.ROOT_SERVER],
                topic=wire.WAIT_TOPIC,
                request=Shareable(),
                timeout=_REPLY_SECONDS,
                fl_ctx=context,
                optional=True,
            )
        reply = (replies or {}).get(FQCN.ROOT_SERVER)
        return reply if isinstance(reply, Shareable) else None

    def _receive_within(self, seconds: float, signal: Signal | None) -> wire.Directive | None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not (signal and signal.triggered):
            if self._received.wait(min(left, _SECONDS_BETWEEN_POLLS)):
                return self._directive
        return None

    def _receive(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic, fl_ctx
        self._directive = wire.get_directive(request)
        self._received.set()
        return make_reply(ReturnCode.OK)
