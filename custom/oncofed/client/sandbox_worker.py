"""Local training in the sandboxed process.

It follows the job process's commands. It gave up its files before, and gives up system calls before it loads the pack's
code.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from safetensors.torch import load, save

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.compute_slot import give_gpu_memory_back
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import LocalTraining, ProgressReporter, SiteContext, Stop
from oncofed.client.sandbox_channel import (
    DONE,
    LOADS_CODE,
    NOTE,
    PREPARE,
    PROGRESS,
    STOP,
    VALIDATE,
    failure,
    prefixed,
    receive,
    send,
)
from oncofed.devices import training_device
from oncofed.errors import PolicyError, SpecError
from oncofed.messages.requests import EvaluateRequest, SumsAsked, TrainRequest
from oncofed.models.weights import Weights
from oncofed.packs.load import load_pack
from oncofed.packs.pack import read_pack
from oncofed.sandbox import restrict_calls
from oncofed.training import Plan
from oncofed.training.checkpoint import without_prefix

Command = tuple[dict[str, Any], bytes]

_UNBOUNDED = 1 << 62  # bytes of a command: the job's process may send any number


class EventSender:
    """Sends events to the job's process; see ``ProgressReporter``."""

    def __init__(self, to: socket.socket) -> None:
        self._to = to
        self._lock = threading.Lock()

    def send(self, event: str, facts: Mapping[str, Any], tensors: Weights | None = None) -> None:
        """Send an event whole, from any thread."""
        blob = save(tensors) if tensors else b""
        with self._lock:
            send(self._to, {**facts, "event": event}, blob)

    def progress(self, **values: Any) -> None:
        """Report progress."""
        self.send(PROGRESS, values)

    def note(self, text: str, level: int) -> None:
        """Write a line to the site's own log."""
        self.send(NOTE, {"text": text, "level": level})


def work(commands: socket.socket, facts: dict[str, Any], content: bytes) -> None:
    """Load the pack, then execute commands until the end.

    Args:
        commands: socket for commands of the job's process and events to it; its end stops the loop.
        facts: of the first command: plan, federation and context.
        content: the pack.
    """
    events = EventSender(commands)
    try:
        plan = Plan.model_validate(facts["plan"])
        federation = FederationPlan.model_validate(facts["federation"])
        # CUDA opens a socket when it starts, and as far as is known none later.
        training_device()
        restrict_calls()
        pack = read_pack(content, "the job's pack")
        if pack.digest != plan.model.code:
            raise PolicyError("the pack is not the one that the job names")
        events.send(LOADS_CODE, {})
        load_pack(pack)
        training = _training(plan, federation, context_from(facts["context"]), events)
    except Exception as error:  # noqa: BLE001 - the job's process must learn of any error
        _send_failure(events, error)
        return
    events.send(DONE, {})
    _obey(commands, training, events)


def context_from(values: Mapping[str, str | None]) -> SiteContext:
    """Return a context from JSON."""
    initial, against = (values[name] for name in ("initial", "against"))
    return SiteContext(
        site=str(values["site"]),
        data=Path(str(values["data"])),
        state=Path(str(values["state"])),
        initial=Path(initial) if initial else None,
        against=Path(against) if against else None,
    )


def _training(
    plan: Plan, federation: FederationPlan, context: SiteContext, reporter: ProgressReporter
) -> InProcessTraining:
    if plan.declared() != plan:
        raise SpecError("the pack's network or task is not the one that the job declares")
    return InProcessTraining(plan=plan, federation=federation, context=context, reporter=reporter)


def _obey(commands: socket.socket, training: LocalTraining, events: EventSender) -> None:
    """Execute commands until the socket is closed."""
    queue: SimpleQueue[Command | None] = SimpleQueue()
    stopped = threading.Event()
    threading.Thread(target=_listen, args=(commands, queue, stopped), name="commands", daemon=True).start()
    while (command := queue.get()) is not None:
        facts, content = command
        try:
            done, tensors = _execute(training, facts, load(content) if content else {}, stopped.is_set)
        except Exception as error:  # noqa: BLE001 - the job's process must learn of any error
            _send_failure(events, error)
            continue
        finally:
            give_gpu_memory_back()
        events.send(DONE, done, tensors)


def _listen(commands: socket.socket, queue: SimpleQueue[Command | None], stopped: threading.Event) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            facts, content = receive(commands, _UNBOUNDED)
            if facts.get("command") == STOP:
                stopped.set()
            else:
                queue.put((facts, content))
    stopped.set()
    queue.put(None)


def _execute(
    training: LocalTraining, facts: Mapping[str, Any], tensors: Weights, stop: Stop
) -> tuple[dict[str, Any], Weights]:
    """Execute a command; return facts and tensors of its result."""
    if facts["command"] == PREPARE:
        return {"numbers": training.prepare()}, {}
    weights = without_prefix(tensors, "weights")
    if facts["command"] == VALIDATE:
        sums = SumsAsked(**facts["sums"]) if facts["sums"] else None
        request = EvaluateRequest(
            weights=weights, round=facts["round"], split=facts["split"], sums=sums, keep=facts["keep"]
        )
        score = training.validate(request, stop, facts["keep_as"])
        return {"numbers": score.numbers, "patient_groups": score.patient_groups, "own": score.own}, {}
    train_request = TrainRequest(
        weights=weights,
        round=facts["round"],
        extra=without_prefix(tensors, "extra"),
        repeat=facts["repeat"],
    )
    result = training.train(train_request, stop)
    counts = {"turn_key": result.turn_key, "cases": result.cases, "steps": result.steps, "numbers": result.numbers}
    return counts, {**prefixed("delta", result.delta), **prefixed("extra", result.extra)}


def _send_failure(events: EventSender, error: Exception) -> None:
    with contextlib.suppress(OSError):
        facts = failure(error)
        events.send(facts["event"], facts)
