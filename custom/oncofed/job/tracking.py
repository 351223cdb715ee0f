"""Sends a run's curves, settings and files to MLflow or Weights & Biases.

Both are clients at the engineer's side, fed from the run's events; nothing at a site knows of them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from oncofed.errors import SpecError
from oncofed.job.curves import MEAN, Point, Tracker
from oncofed.rounds.events import Event, Failed, Finished, Started, Stopped

# Of a tracker that does not answer.
_SECONDS_BETWEEN_TRIES = 5.0
_SECONDS_AT_THE_END = 30.0
# MLflow's own limits.
_POINTS_A_REQUEST, _SETTINGS_A_REQUEST, _LONGEST_SETTING = 1000, 100, 6000
_LONGEST_NAME = 250
_RUN_TAG = "oncofed.run"
# Answers to what the server will never take, however often it is sent.
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"})
_REFUSED_UPLOADS = frozenset({400, 413, 422})

# Modules that the libraries import at their first calls.
_LATE_OF_MLFLOW = (
    "netrc",
    "IPython",
    "mlflow.entities",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "mlflow.tracking.request_header.registry",
)
_LATE_OF_WANDB = ("wandb.apis.public", "wandb.sdk.launch.inputs.internal")


class _Client(Protocol):
    """What a tracker's library does; each call may take long or fail."""

    def open(self) -> None: ...

    def log(self, points: Sequence[Point], at: float) -> None: ...

    def describe(self, settings: Mapping[str, str]) -> None: ...

    def attach(self, files: Sequence[Path]) -> None: ...

    def end(self, status: str) -> None: ...

    def refused(self, error: Exception) -> bool: ...


@contextlib.contextmanager
def opened_trackers(
    names: Sequence[str], run: str, job: str, console: Console, folder: Path
) -> Iterator[list[Tracker]]:
    """Yield the trackers of a run; close them then.

    Args:
        names: "mlflow", "wandb".
        run: by which the same run is found again, such as FLARE's id of the job.
        job: name of the job, by which runs are grouped.
        console: for the one line about a tracker that does not answer.
        folder: for Weights & Biases' files, unless WANDB_DIR is set.

    Raises:
        SpecError: an unknown name, a library that is not installed, or no address.
    """
    clients = {name: _client(name, run, job, folder) for name in dict.fromkeys(names)}
    trackers = [_Deferred(name, client, console) for name, client in clients.items()]
    try:
        yield list(trackers)
    finally:
        for tracker in trackers:
            tracker.close()


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return settings by dotted name, as text; those without a value are left out."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = str(value)[:_LONGEST_SETTING]
    return found


class _Deferred:
    """Hands what comes to a library in a thread of its own, again where it fails.

    A server that is slow or away delays no round and ends no run; what it refuses is left out. The thread starts at the
    first event, when the job is built: a library's imports do not disturb those that look through loaded modules.
    """

    def __init__(self, name: str, client: _Client, console: Console) -> None:
        self._name, self._client, self._console = name, client, console
        self._status, self._ended, self._closed = "FINISHED", False, False
        self._waiting: queue.Queue[Callable[[], None] | list[tuple[Point, float]] | None] = queue.Queue()
        self._given_up, self._said = threading.Event(), set[str]()
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._waiting.put(client.open)

    def write(self, event: Event, points: Sequence[Point]) -> None:
        """Send an event's points."""
        self._start()
        self._ended = self._ended or isinstance(event, Finished | Failed | Stopped)
        if isinstance(event, Failed | Stopped):
            self._status = "FAILED" if isinstance(event, Failed) else "KILLED"
        if isinstance(event, Started):
            known = {"rounds": event.rounds, "steps_per_round": event.steps_per_round, "sites": len(event.sites)}
            self.describe({"run": known | {"strategy": event.strategy}})
        if isinstance(event, Finished):
            self.describe({"run": {"best_round": event.best_round}})
        if points:
            self._waiting.put([(point, event.time) for point in points])

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Send settings."""
        told = flat(settings)
        self._waiting.put(lambda: self._client.describe(told))

    def attach(self, files: Sequence[Path]) -> None:
        """Send those of the files that exist."""
        present = [file for file in files if file.is_file()]
        self._waiting.put(lambda: self._client.attach(present))

    def interrupted(self, goes_on: bool = False) -> None:
        """Note that the run was not followed to its end.

        Args:
            goes_on: the run does, unless an event has said that it ended.
        """
        if self._status == "FINISHED" and not (goes_on and self._ended):
            self._status = "RUNNING" if goes_on else "KILLED"

    def close(self) -> None:
        """Send what waits, for half a minute at most."""
        if self._closed:
            return
        self._closed = True
        self._start()
        self._waiting.put(lambda: self._client.end(self._status))
        self._waiting.put(None)
        self._thread.join(_SECONDS_AT_THE_END)
        if self._thread.is_alive():
            self._given_up.set()
            self._say("has not taken everything. Send the run again with: oncofed job track RUN --to " + self._name)

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken = self._deliver(self._sender(first))
            if not taken and first == self._client.open:  # there is no run to send anything to
                self._given_up.set()

    def _deliver(self, send: Callable[[], None]) -> bool:
        """Send until it is taken; return False if it is refused."""
        while not self._given_up.is_set():
            try:
                send()
                break
            except Exception as error:  # noqa: BLE001 - whatever a library or server does, the run goes on
                if self._client.refused(error):
                    self._say_once(f"refuses a part of the run ({_reason(error)}); left out, and the run goes on")
                    return False
                self._say_once(f"does not take the curves ({_reason(error)}); tried again, and the run goes on")
                self._given_up.wait(_SECONDS_BETWEEN_TRIES)
        return True

    def _sender(self, first: Callable[[], None] | list[tuple[Point, float]]) -> Callable[[], None]:
        if callable(first):
            return first
        latest = max(at for _, at in first)
        return lambda: self._client.log([point for point, _ in first], latest)

    def _say_once(self, what: str) -> None:
        kind = what.partition(" (")[0]
        if kind not in self._said:
            self._said.add(kind)
            self._say(what)

    def _say(self, what: str) -> None:
        self._console.print(f"{self._name} {what}", markup=False, highlight=False, soft_wrap=True)


def _reason(error: Exception) -> str:
    """Return an error's first line, short and without an address' user and password; a library's may be pages."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"//\S*@", "//", line)[:160]


def _import_ahead(modules: Sequence[str]) -> None:
    """Import what a library would import at its first call, in a thread; one that is not there is not needed."""
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _client(name: str, run: str, job: str, folder: Path) -> _Client:
    if name == "mlflow":
        return _Mlflow(run, job)
    if name == "wandb":
        return _Wandb(run, job, folder)
    raise SpecError(f"--track {name}: known are mlflow and wandb (TensorBoard's files are always written)")


def _key(point: Point) -> str:
    """Return a curve's name among those of all sites."""
    return point.name if point.site == MEAN else f"sites/{point.site}/{point.name}"


class _Mlflow:
    """A run at an MLflow server; found again by its tag."""

    def __init__(self, run: str, job: str) -> None:
        self._run, self._experiment = run, os.environ.get("MLFLOW_EXPERIMENT_NAME", job)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise SpecError("--track mlflow: set MLFLOW_TRACKING_URI to your server, such as http://127.0.0.1:5000")
        # No figures to others than that server, and no minutes of waiting in one call: it is repeated here.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # where JSON may go
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        try:
            import mlflow  # noqa: PLC0415 - an extra, and seconds to import
        except ModuleNotFoundError:
            raise SpecError("--track mlflow needs MLflow's client: pip install 'oncofed[tracking]'") from None
        _import_ahead(_LATE_OF_MLFLOW)
        self._client, self._exception = mlflow.MlflowClient(), mlflow.MlflowException
        self._id = ""
        self._there: dict[str, set[int]] = {}

    def open(self) -> None:
        experiment = self._client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        known = self._client.search_runs([number], f"tags.`{_RUN_TAG}` = '{_tag(self._run)}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {_RUN_TAG: _tag(self._run)}
            self._id = self._client.create_run(number, tags=tags, run_name=self._run).info.run_id

    def log(self, points: Sequence[Point], at: float) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415 - an extra

        # Who watches a run again sends it from its first event.
        new = [point for point in points if point.step not in self._steps(_name(_key(point)))]
        metrics = [Metric(_name(_key(point)), point.value, int(at * 1000), point.step) for point in new]
        for start in range(0, len(metrics), _POINTS_A_REQUEST):
            self._client.log_batch(self._id, metrics[start : start + _POINTS_A_REQUEST])
        for point in new:
            self._steps(_name(_key(point))).add(point.step)

    def _steps(self, key: str) -> set[int]:
        if key not in self._there:
            self._there[key] = {metric.step for metric in self._client.get_metric_history(self._id, key)}
        return self._there[key]

    def describe(self, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Param  # noqa: PLC0415 - an extra

        known = self._client.get_run(self._id).data.params
        new = [Param(_name(key), value) for key, value in settings.items() if _name(key) not in known and value]
        for start in range(0, len(new), _SETTINGS_A_REQUEST):
            self._client.log_batch(self._id, params=new[start : start + _SETTINGS_A_REQUEST])

    def attach(self, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def end(self, status: str) -> None:
        if status != "RUNNING":
            self._client.set_terminated(self._id, status)

    def refused(self, error: Exception) -> bool:
        if isinstance(error, self._exception):
            return error.error_code in _REFUSALS
        return getattr(getattr(error, "response", None), "status_code", None) in _REFUSED_UPLOADS


def _name(key: str) -> str:
    """Return a name that MLflow takes: letters, digits and -_. and space, as a path with no empty or dotted part."""
    parts = re.sub(r"[^\w\-./ ]", "_", key)[:_LONGEST_NAME].split("/")
    return "/".join("_" if part in {"", ".", ".."} else part for part in parts)


def _tag(run: str) -> str:
    """Return a run's name as it can stand between quotes of a search, which know no escape."""
    return re.sub(r"['\"\\]", lambda found: f"%{ord(found[0]):02x}", run)


class _Wandb:
    """A run in Weights & Biases' files, which ``wandb sync`` sends."""

    def __init__(self, run: str, job: str, folder: Path) -> None:
        self._id, self._job = re.sub(r"[^\w\-.]", "_", run), job
        self._folder = Path(os.environ.get("WANDB_DIR", folder)).resolve()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb  # noqa: PLC0415 - an extra, and seconds to import
        except ModuleNotFoundError:
            raise SpecError("--track wandb needs its client: pip install 'oncofed[tracking]'") from None
        _import_ahead(_LATE_OF_WANDB)
        self._library: Any = wandb
        self._run: Any = None

    def open(self) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":  # as TensorBoard's files, those of an earlier look at the same run are replaced
            for earlier in (self._folder / "wandb").glob(f"offline-run-*-{self._id}"):
                shutil.rmtree(earlier, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._library.Settings(console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True)
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT", self._job),
            name=self._id,
            id=self._id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=str(self._folder),
            settings=settings,
        )
        self._run.define_metric("*", step_metric="round")
        self._run.define_metric("sites/*", step_metric="round")

    def log(self, points: Sequence[Point], at: float) -> None:
        del at
        for point in points:
            key = _key(point)
            # A site's loss is by steps; all else is by rounds.
            axis = "step" if point.name == "train/loss" and point.site != MEAN else "round"
            if axis == "step":
                self._run.define_metric(key, step_metric="step")
            self._run.log({key: point.value, axis: point.step})

    def describe(self, settings: Mapping[str, str]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)

    def attach(self, files: Sequence[Path]) -> None:
        for file in files:
            self._run.save(str(file), base_path=str(file.parent), policy="now")

    def end(self, status: str) -> None:
        # It knows no run that is left and goes on.
        self._run.finish(exit_code=0 if status in {"FINISHED", "RUNNING"} else 1)

    def refused(self, error: Exception) -> bool:
        del error  # files are written here; they are sent by a process of its own
        return False
