"""A site's turns in a process that has no network, for code that an engineer brought; see ``oncofed.sandbox``.

That process (``confined_process``) reads the job's own data, writes to the job's own folder, and answers with JSON and
safetensors, which the process of the job takes apart as carefully as if they came from a stranger.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import oncofed.errors
from oncofed.algorithms.plan import FederationPlan
from oncofed.client.compute_slot import give_gpu_memory_back
from oncofed.client.local_training import InProcessTraining, ProgressReporter, SiteContext, Stop, TrainResult
from oncofed.client.sandboxed_process import DONE, FAILED, failure, receive, send
from oncofed.devices import training_device
from oncofed.errors import (
    DataError,
    OncofedError,
    PolicyError,
    SpecError,
    StateError,
    TrainingError,
    UnreadableError,
    one_line,
)
from oncofed.messages.requests import SumsAsked
from oncofed.models.weights import Weights
from oncofed.packs.load import load_pack
from oncofed.packs.pack import Pack, read_pack
from oncofed.processes import SHARED_VARIABLE
from oncofed.sandbox import restrict_calls
from oncofed.training import Plan
from oncofed.training.checkpoint import without_prefix

_BEGIN, _PREPARE, _TRAIN, _VALIDATE, _STOP = "begin", "prepare", "train", "validate", "stop"
_PROGRESS, _NOTE, _LOADS = "progress", "note", "loads"
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_STOP = 60.0
_LONGEST_NOTE = 2000
_SCRATCH = "scratch"
_ERRORS = 2  # the file descriptor: what the process prints goes to the log of the job's
# Of the process of the job: nothing of FLARE's, no secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", SHARED_VARIABLE)
_ENVIRONMENT_PREFIXES = ("CUDA_", "NVIDIA_", "MKL_", "TORCH_")
# Whose words the executor keeps at the site.
_OF_THE_SITE: dict[str, type[OncofedError]] = {kind.__name__: kind for kind in (DataError, UnreadableError, StateError)}


class SandboxedTraining:
    """Takes a site's turns in a process of its own; see ``turns.LocalTraining``.

    Args:
        plan: what is trained, with a network of the pack.
        federation: how the sites work together.
        place: where.
        tell: who is told how it goes.
        pack: the code, which the site approved.
    """

    def __init__(
        self, plan: Plan, federation: FederationPlan, place: SiteContext, tell: ProgressReporter, pack: Pack
    ) -> None:
        self._plan, self._federation, self._place, self._tell, self._pack = plan, federation, place, tell, pack
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._has_code = False  # what the process says may be the code's words
        self._largest = 3 * plan.layout().nbytes + (16 << 20)

    def prepare(self) -> dict[str, Any]:
        """Start the process, and have it load its data."""
        return self._ask({"do": _PREPARE})[0]

    def train(self, sent: Weights, number: int, beside: Weights, stop: Stop) -> TrainResult:
        """Have it take the turn."""
        tensors = {**_named("sent", sent), **_named("beside", beside)}
        facts, found = self._ask({"do": _TRAIN, "round": number}, tensors, stop)
        try:
            return TrainResult(
                asked=str(facts["asked"]),
                delta=without_prefix(found, "delta"),
                extra=without_prefix(found, "extra"),
                cases=int(facts["cases"]),
                steps=int(facts["steps"]),
                numbers=dict(facts["numbers"]),
            )
        except (KeyError, TypeError, ValueError):
            raise TrainingError("the code's process answered with something else than an update") from None

    def validate(
        self, sent: Weights, split: str, stop: Stop, keep_as: str | None = None, asked: SumsAsked | None = None
    ) -> dict[str, Any]:
        """Have it score the model."""
        order = {"do": _VALIDATE, "split": split, "keep_as": keep_as, "asked": asdict(asked) if asked else None}
        return self._ask(order, _named("sent", sent), stop)[0]

    def close(self) -> None:
        """End the process."""
        if self._socket:
            self._socket.close()
            self._socket = None
        if self._process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ask(
        self, facts: dict[str, Any], tensors: Weights | None = None, stop: Stop = lambda: False
    ) -> tuple[dict[str, Any], Weights]:
        try:
            if self._socket is None:
                self._begin()
            return self._exchange(facts, save(tensors) if tensors else b"", stop)
        except (OSError, EOFError, ValueError, SafetensorError) as error:
            # It has ended, or says what it should not: another process goes on from what is kept.
            code = self._process.poll() if self._process else None
            self.close()
            raise TrainingError(
                f"the process of the pack {self._pack.name} ended ({type(error).__name__}, status {code}); the site's "
                "own log says more"
            ) from None
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        scratch = self._place.state / _SCRATCH
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The driver makes its devices for the first who asks, who needs rights for that which are given up there.
        torch.cuda.is_available()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # Nothing may be imported from where the code could have written before.
                [sys.executable, "-s", "-m", "oncofed.client.sandboxed_process"],
                stdin=theirs.fileno(),
                stdout=_ERRORS,
                env=_environment(scratch),
                cwd="/",
                start_new_session=True,
            )
        self._socket, self._has_code = ours, False
        place = {name: str(value) if value is not None else None for name, value in asdict(self._place).items()}
        about = {
            "do": _BEGIN,
            "plan": self._plan.model_dump(mode="json"),
            "federation": self._federation.model_dump(mode="json"),
            "place": place,
        }
        self._exchange(about, self._pack.content, lambda: False)

    def _exchange(self, facts: dict[str, Any], blob: bytes, stop: Stop) -> tuple[dict[str, Any], Weights]:
        """Send an order, pass on what is told meanwhile, and return the answer."""
        assert self._socket
        send(self._socket, facts, blob)
        told_to_stop: float | None = None
        while True:
            if not select.select([self._socket], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
                if told_to_stop is None and stop():
                    told_to_stop = time.monotonic()
                    send(self._socket, {"do": _STOP}, b"")
                if told_to_stop is not None and time.monotonic() - told_to_stop > _SECONDS_TO_STOP:
                    raise TimeoutError("it does not stop")
                continue
            told, content = receive(self._socket, self._largest)
            kind = told.pop("told", None)
            if kind == _PROGRESS:
                self._tell.progress(**told)
            elif kind == _NOTE:
                level = told.get("level")
                self._tell.note(
                    one_line(str(told.get("text")), _LONGEST_NOTE), level if level in (20, 30, 40) else logging.ERROR
                )
            elif kind == _LOADS:
                self._has_code = True
            elif kind == DONE:
                return told, load(content) if content else {}
            elif kind == FAILED:
                raise self._error(str(told.get("type")), one_line(str(told.get("text")), _LONGEST_NOTE))
            else:
                raise ValueError("it tells what nobody knows")

    def _error(self, kind: str, text: str) -> OncofedError:
        """Return an error as this site's executor knows them. Words that the code may have chosen stay here."""
        self._tell.note(f"the pack {self._pack.name}: {kind[:60]}: {text}", logging.ERROR)
        if kind in _OF_THE_SITE:
            return _OF_THE_SITE[kind](text)
        if kind == TrainingError.__name__ and not self._has_code:
            return TrainingError(text)
        known = kind if hasattr(builtins, kind) or hasattr(oncofed.errors, kind) else "error"
        return TrainingError(f"its process of the pack {self._pack.name} ended in a {known}; its own log says more")


def _environment(scratch: Path) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if n in _ENVIRONMENT or n.startswith(_ENVIRONMENT_PREFIXES)}
    folders = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"), str(scratch))
    # Libraries ask for the user's name as they are imported, and it is not in a file that they may read.
    return {**kept, **folders, "LOGNAME": "oncofed", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}


def _named(kind: str, weights: Weights) -> Weights:
    return {f"{kind}.{name}": value.contiguous() for name, value in weights.items()}


# --- the confined process


class _Teller:
    """Tells the process of the job how the work goes; see ``turns.ProgressReporter``."""

    def __init__(self, to: socket.socket) -> None:
        self._to = to
        self.lock = threading.Lock()

    def tell(self, kind: str, facts: Mapping[str, Any], tensors: Weights | None = None) -> None:
        """Send a message whole, whichever thread it comes from."""
        blob = save(tensors) if tensors else b""
        with self.lock:
            send(self._to, {**facts, "told": kind}, blob)

    def progress(self, **values: Any) -> None:
        """Tell how far it is."""
        self.tell(_PROGRESS, values)

    def note(self, text: str, level: int) -> None:
        """Tell a line for the site's own log."""
        self.tell(_NOTE, {"text": text, "level": level})


def be_confined(orders: socket.socket, facts: dict[str, Any], content: bytes) -> None:
    """Take turns in this process, which has given up its files already.

    Args:
        orders: where orders come from, and answers go to.
        facts: the first order, which says what is trained, and where.
        content: the pack.
    """
    place = facts["place"]
    brought = [Path(place[name]) if place[name] else None for name in ("initial", "against")]
    where = SiteContext(place["site"], Path(place["data"]), Path(place["state"]), *brought)
    teller = _Teller(orders)
    try:
        plan = Plan.model_validate(facts["plan"])
        federation = FederationPlan.model_validate(facts["federation"])
        # CUDA makes a socket as it begins, and by what is known of it none later.
        training_device()
        restrict_calls()
        pack = read_pack(content, "the job's pack")
        if pack.digest != plan.model.code:
            raise PolicyError("the pack is not the one that the job names")
        teller.tell(_LOADS, {})
        load_pack(pack)
        turns = _turns(plan, federation, where, teller)
    except Exception as error:  # noqa: BLE001 - whatever it is, the job's process is told
        _tell_failure(teller, error)
        return
    teller.tell(DONE, {})
    _serve(orders, turns, teller)


def _turns(plan: Plan, federation: FederationPlan, place: SiteContext, tell: ProgressReporter) -> InProcessTraining:
    if plan.declared() != plan:
        raise SpecError("the pack's network or task is not the one that the job declares")
    return InProcessTraining(plan, federation, place, tell)


def _serve(orders: socket.socket, turns: InProcessTraining, teller: _Teller) -> None:
    """Do one order after the other, until the socket is closed."""
    queue: SimpleQueue[tuple[dict[str, Any], bytes] | None] = SimpleQueue()
    stopped = threading.Event()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                facts, content = receive(orders, 1 << 62)
                if facts.get("do") == _STOP:
                    stopped.set()
                else:
                    queue.put((facts, content))
        stopped.set()
        queue.put(None)

    threading.Thread(target=listen, name="orders", daemon=True).start()
    while (order := queue.get()) is not None:
        facts, content = order
        try:
            answer, tensors = _done(turns, facts, load(content) if content else {}, stopped.is_set)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job's process is told
            _tell_failure(teller, error)
            continue
        finally:
            give_gpu_memory_back()
        teller.tell(DONE, answer, tensors)


def _done(
    turns: InProcessTraining, facts: dict[str, Any], tensors: Weights, stop: Stop
) -> tuple[dict[str, Any], Weights]:
    if facts["do"] == _PREPARE:
        return turns.prepare(), {}
    sent = without_prefix(tensors, "sent")
    if facts["do"] == _VALIDATE:
        asked = SumsAsked(**facts["asked"]) if facts["asked"] else None
        return turns.validate(sent, facts["split"], stop, facts["keep_as"], asked), {}
    answer = turns.train(sent, facts["round"], without_prefix(tensors, "beside"), stop)
    return answer.facts, {**_named("delta", answer.delta), **_named("extra", answer.extra)}


def _tell_failure(teller: _Teller, error: Exception) -> None:
    with contextlib.suppress(OSError):
        teller.tell(FAILED, failure(error))
