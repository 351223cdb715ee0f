"""Local training of a pack, without network.

The process (``sandboxed_process``, ``sandbox_worker``; see ``oncofed.sandbox``) runs an engineer's code. It reads the
job's data, writes to the job's folder, and answers with JSON and safetensors. Its answers are not trusted.
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
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import oncofed.errors
from oncofed.algorithms.plan import FederationPlan
from oncofed.client.local_training import LocalScore, ProgressReporter, SiteContext, Stop
from oncofed.client.sandbox_channel import (
    BEGIN,
    DONE,
    FAILED,
    LOADS_CODE,
    NOTE,
    PREPARE,
    PROGRESS,
    STOP,
    TRAIN,
    VALIDATE,
    prefixed,
    receive,
    send,
)
from oncofed.errors import DataError, OncofedError, StateError, TrainingError, UnreadableError, one_line
from oncofed.messages.requests import EvaluateRequest, TrainRequest
from oncofed.messages.results import TrainResult
from oncofed.models.encoders import FOLDER_VARIABLE, encoders_folder
from oncofed.models.weights import Weights
from oncofed.packs.pack import Pack
from oncofed.processes import SHARED_VARIABLE
from oncofed.tasks.encoder import EncoderSpec, weights_file
from oncofed.training import Plan
from oncofed.training.checkpoint import without_prefix

_SECONDS_BETWEEN_POLLS = 0.2
_SECONDS_TO_STOP = 60.0
_LONGEST_NOTE = 2000
_SCRATCH = "scratch"
_STDERR = 2  # the file descriptor: output of the process goes to the log of the job's process
# Variables that the process inherits: none of FLARE's, no secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", SHARED_VARIABLE)
_ENVIRONMENT_PREFIXES = ("CUDA_", "NVIDIA_", "MKL_", "TORCH_")
# Errors whose text the executor keeps at the site.
_KEPT_AT_SITE: dict[str, type[OncofedError]] = {
    kind.__name__: kind for kind in (DataError, UnreadableError, StateError)
}


class SandboxedTraining:
    """Trains and scores in a process without network; see ``LocalTraining``.

    Args:
        plan: what to train, with a network of the pack.
        federation: how the sites train together.
        context: where this site trains.
        reporter: receives progress and log lines.
        pack: the code, which the site approved.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        federation: FederationPlan,
        context: SiteContext,
        reporter: ProgressReporter,
        pack: Pack,
    ) -> None:
        self._plan, self._federation = plan, federation
        self._context, self._reporter = context, reporter
        self._pack = pack
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._has_code = False  # whether the process's text may come from the pack's code
        self._largest = 3 * plan.layout().nbytes + (16 << 20)

    def prepare(self) -> dict[str, Any]:
        """Start the process, and have it load its data."""
        facts, _ = self._command({"command": PREPARE})
        return _numbers_of(facts)

    def train(self, request: TrainRequest, stop: Stop) -> TrainResult:
        """Have it train."""
        tensors = {**prefixed("weights", request.weights), **prefixed("extra", request.extra)}
        facts, found = self._command(
            {"command": TRAIN, "round": request.round, "repeat": request.repeat}, tensors, stop
        )
        try:
            return TrainResult(
                turn_key=str(facts["turn_key"]),
                delta=without_prefix(found, "delta"),
                extra=without_prefix(found, "extra"),
                cases=int(facts["cases"]),
                steps=int(facts["steps"]),
                numbers=dict(facts["numbers"]),
            )
        except (KeyError, TypeError, ValueError):
            raise TrainingError("the code's process answered with something else than an update") from None

    def validate(self, request: EvaluateRequest, stop: Stop, keep_as: str | None = None) -> LocalScore:
        """Have it score the model."""
        facts, _ = self._command(
            {
                "command": VALIDATE,
                "round": request.round,
                "split": request.split,
                "keep": request.keep,
                "keep_as": keep_as,
                "sums": asdict(request.sums) if request.sums else None,
            },
            prefixed("weights", request.weights),
            stop,
        )
        groups = facts.get("patient_groups")
        return LocalScore(_numbers_of(facts), groups if isinstance(groups, list) else (), bool(facts.get("own")))

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

    def _command(
        self, facts: dict[str, Any], tensors: Weights | None = None, stop: Stop = lambda: False
    ) -> tuple[dict[str, Any], Weights]:
        """Execute a command; return its result's facts and tensors.

        A process is started where none runs.
        """
        try:
            if self._socket is None:
                self._start()
            return self._exchange(facts, save(tensors) if tensors else b"", stop)
        except (OSError, EOFError, ValueError, SafetensorError) as error:
            # It has ended, or sent an invalid message. The next process resumes from the state on disk.
            code = self._process.poll() if self._process else None
            self.close()
            raise TrainingError(
                f"the process of the pack {self._pack.name} ended ({type(error).__name__}, status {code}); the site's "
                "own log says more"
            ) from None
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        scratch = self._context.state / _SCRATCH
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The driver creates its device files for the first process that uses it, which needs rights that the sandboxed
        # process gives up.
        torch.cuda.is_available()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -s: no import from folders that the code could have written to earlier.
                [sys.executable, "-s", "-m", "oncofed.client.sandboxed_process"],
                stdin=theirs.fileno(),
                stdout=_STDERR,
                env=_environment(scratch),
                cwd="/",
                start_new_session=True,
            )
        self._socket, self._has_code = ours, False
        here = self._context
        places = {"site": here.site, "data": here.data, "state": here.state}
        places |= {"initial": here.initial, "against": here.against}
        context = {name: None if value is None else str(value) for name, value in places.items()}
        encoder = getattr(self._plan.task, "encoder", None)
        weights = weights_file(encoder) if isinstance(encoder, EncoderSpec) else None
        facts = {
            "command": BEGIN,
            "plan": self._plan.model_dump(mode="json"),
            "federation": self._federation.model_dump(mode="json"),
            "context": context,
            "weights": None if weights is None else str(weights.absolute()),
        }
        self._exchange(facts, self._pack.content, lambda: False)

    def _exchange(self, facts: dict[str, Any], blob: bytes, stop: Stop) -> tuple[dict[str, Any], Weights]:
        """Send a command and return its result.

        Events are passed on meanwhile.
        """
        assert self._socket
        send(self._socket, facts, blob)
        stopped_at: float | None = None
        while True:
            if not select.select([self._socket], [], [], _SECONDS_BETWEEN_POLLS)[0]:
                if stopped_at is None and stop():
                    stopped_at = time.monotonic()
                    send(self._socket, {"command": STOP}, b"")
                if stopped_at is not None and time.monotonic() - stopped_at > _SECONDS_TO_STOP:
                    raise TimeoutError("it does not stop")
                continue
            values, content = receive(self._socket, self._largest)
            event = values.pop("event", None)
            if event == DONE:
                return values, load(content) if content else {}
            if event == FAILED:
                raise self._error(str(values.get("type")), one_line(str(values.get("text")), _LONGEST_NOTE))
            self._pass_on(event, values)

    def _pass_on(self, event: Any, values: dict[str, Any]) -> None:
        if event == PROGRESS:
            self._reporter.progress(**values)
        elif event == NOTE:
            level = values.get("level")
            text = one_line(str(values.get("text")), _LONGEST_NOTE)
            self._reporter.note(text, level if level in (logging.INFO, logging.WARNING) else logging.ERROR)
        elif event == LOADS_CODE:
            self._has_code = True
        else:
            raise ValueError("an unknown event")

    def _error(self, kind: str, text: str) -> OncofedError:
        """Return an error without the code's text."""
        self._reporter.note(f"the pack {self._pack.name}: {kind[:60]}: {text}", logging.ERROR)
        if kind in _KEPT_AT_SITE:
            return _KEPT_AT_SITE[kind](text)
        if kind == TrainingError.__name__ and not self._has_code:
            return TrainingError(text)
        known = kind if hasattr(builtins, kind) or hasattr(oncofed.errors, kind) else "error"
        return TrainingError(f"its process of the pack {self._pack.name} ended in a {known}; its own log says more")


def _environment(scratch: Path) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if n in _ENVIRONMENT or n.startswith(_ENVIRONMENT_PREFIXES)}
    folders = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"), str(scratch))
    # Libraries look up the user's name when they are imported, in a file that the process may not read.
    folders[FOLDER_VARIABLE] = str(encoders_folder().absolute())
    return {**kept, **folders, "LOGNAME": "oncofed", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}


def _numbers_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result's numbers; the outbound filter checks them.

    Raises:
        TrainingError: it has none.
    """
    numbers = facts.get("numbers")
    if not isinstance(numbers, dict):
        raise TrainingError("the code's process answered with something else than numbers")
    return numbers
