"""FLARE's streams, in which it sends every message, with less work for each."""

from __future__ import annotations

import threading
import time
from typing import Any

from nvflare.fuel.f3.streaming import byte_streamer
from nvflare.fuel.utils.buffer_list import ConsumableBufferList

# FLARE sends again what was not acknowledged for seconds.
_SECONDS_BETWEEN_LOOKS = 1.0


class _Retries(byte_streamer.ReliableRetryScheduler):
    """Sends answers again that were not acknowledged.

    FLARE's own looks at all of them whenever one is sent or acknowledged, through a pool of threads: with n sites that
    are answered at the same time, some n² times. None is due before seconds have passed, so this one looks each second.
    """

    over: threading.Event

    @property
    def stopped(self) -> bool:
        """Whether the process ends; what FLARE calls then, which it bound before, sets this."""
        return self.over.is_set()

    @stopped.setter
    def stopped(self, ends: bool) -> None:
        if ends:
            self.over.set()

    def _run(self) -> None:
        while not self.over.wait(_SECONDS_BETWEEN_LOOKS):
            with self.cv:
                now = time.monotonic()
                stalled = {task for task, since in self.inflight_tasks.items() if now - since > task.retry_timeout}
                stalled -= self.stalled_tasks
                self.stalled_tasks |= stalled
                tasks = [task for task in self.tasks.values() if task not in self.inflight_tasks]
                self.inflight_tasks.update(dict.fromkeys(tasks, now))
            for task in stalled:
                byte_streamer.log.error(f"{task} is being sent again since more than {task.retry_timeout:.0f} s")
            for task in tasks:
                looked = self.retry_task_pool.submit(task.retry_task)
                if looked is None:  # the pool has been shut down
                    self._finish_inflight(task)
                else:
                    looked.add_done_callback(lambda _, task=task: self._finish_inflight(task))


class _Sending(byte_streamer.TxTask):
    """A stream that is sent. FLARE's own has a buffer of a megabyte, cleared anew for each message of some bytes."""

    def __init__(
        self, cell: Any, chunk_size: int, channel: str, topic: str, target: str, headers: Any, stream: Any, *more: Any
    ) -> None:
        room = min(chunk_size, stream.get_size() or chunk_size)
        super().__init__(cell, room, channel, topic, target, headers, stream, *more)
        # What the other end is told: it reckons from it how many chunks may be on their way.
        self.chunk_size = chunk_size


def lighten_streams() -> None:
    """Have this process send and receive its messages so; to be called before the first.

    FLARE also makes a text of every message that arrives, all of its bytes, for a line of its log that is hardly ever
    written: 10 ms for each megabyte. It is told to name the message there.
    """
    retries = byte_streamer.reliable_retry_scheduler
    if not isinstance(retries, _Retries):
        retries.over = threading.Event()
        retries.__class__ = _Retries
    byte_streamer.TxTask = _Sending
    ConsumableBufferList.__repr__ = object.__repr__
