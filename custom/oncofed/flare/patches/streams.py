"""Send FLARE's messages with less work for each.

FLARE 2.9.0 sends every message as a stream. For each it clears a buffer of a megabyte, scans all streams that are not
acknowledged yet, and formats all received bytes for a debug log line that is rarely written: 10 ms a megabyte. Replaces
``TxTask``, the class of ``reliable_retry_scheduler``, and ``ConsumableBufferList.__repr__``.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from nvflare.fuel.f3.streaming import byte_streamer
from nvflare.fuel.utils.buffer_list import ConsumableBufferList

# FLARE sends a stream again once it has been unacknowledged for seconds.
_SECONDS_BETWEEN_LOOKS = 1.0


class _RetryScheduler(byte_streamer.ReliableRetryScheduler):
    """Checks once a second for streams to send again.

    FLARE's own scans all of them whenever one is sent or acknowledged, on a pool of threads: about n² times for n sites
    that are answered at the same time. None is due before seconds have passed.
    """

    over: threading.Event

    @property
    def stopped(self) -> bool:
        """Whether the process ends, as FLARE's ``shutdown`` sets it."""
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


class _SmallTxTask(byte_streamer.TxTask):
    """A sent stream with a buffer of its content's size."""

    def __init__(
        self, cell: Any, chunk_size: int, channel: str, topic: str, target: str, headers: Any, stream: Any, *more: Any
    ) -> None:
        room = min(chunk_size, stream.get_size() or chunk_size)
        super().__init__(cell, room, channel, topic, target, headers, stream, *more)
        # The receiver derives from it how many chunks may be in flight.
        self.chunk_size = chunk_size


def lighten_streams() -> None:
    """Change this process's streams; call it before the first message."""
    if not isinstance(byte_streamer.reliable_retry_scheduler, _RetryScheduler):
        byte_streamer.reliable_retry_scheduler.over = threading.Event()
        byte_streamer.reliable_retry_scheduler.__class__ = _RetryScheduler
    byte_streamer.TxTask = _SmallTxTask
    ConsumableBufferList.__repr__ = object.__repr__
