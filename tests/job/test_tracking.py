"""Runs in MLflow's real server, and in Weights & Biases' files."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from commands import wait_for
from oncofed.cli.main import app
from oncofed.cli.tracking import tracked
from oncofed.errors import SpecError
from oncofed.job import tracking
from oncofed.job.curves import Curves, Point, PointReader
from oncofed.job.tracking import flat, opened_trackers
from oncofed.loopback import free_port
from oncofed.rounds.events import Event, Failed, Finished, RoundEnded, SiteProgress, Started, Validated

mlflow = pytest.importorskip("mlflow", reason="MLflow's client is not installed")
pytest.importorskip("wandb", reason="Weights & Biases' client is not installed")

# `make mlflow` installs the server into an environment of its own.
_SERVER = shutil.which("mlflow", path=str(Path(__file__).parents[2] / "workspace" / ".cache" / "mlflow" / "bin"))
needs_server = pytest.mark.skipif(_SERVER is None, reason="no MLflow server: make mlflow")

EVENTS: list[Event] = [
    Started(time=100.0, sites=["east", "west"], rounds=2, steps_per_round=4, metric="dice", strategy="fedavg"),
    SiteProgress(time=101.0, site="east", phase="training", step=2, steps=8, loss=0.9),
    SiteProgress(time=102.0, site="east", phase="training", step=4, steps=8, loss=0.7),
    Validated(time=103.0, round=1, mean=0.4, sites={"east": 0.4, "west": None}, by_class={"east": {"left (T1)": 0.3}}),
    RoundEnded(time=104.0, round=1, seconds=5.0, slowest_site_s=4.5, losses={"east": 0.8}, cases={"east": 4}),
    Finished(time=105.0, best_round=1, best_validation=0.4, test={"east": {"mean": 0.5}, "west": {"mean": None}}),
]


def _start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    line = [str(_SERVER), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{folder / 'db'}", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("wb") as log:
        settings = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
        return subprocess.Popen(line, stdout=log, stderr=log, env=settings, start_new_session=True)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server."""
    port = free_port()
    process = _start(tmp_path_factory.mktemp("mlflow"), port)
    try:
        wait_for(lambda: _answers(port), "MLflow answers")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the address of the server."""

    def take(port: int) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")  # of a server on a busy machine

    return take


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than a run would wait."""
    monkeypatch.setattr(tracking, "_SECONDS_AT_THE_END", 300.0)


def _send(folder: Path, names: list[str], run: str = "run-1", events: list[Event] = EVENTS) -> str:
    text, reader = io.StringIO(), PointReader()
    (folder / "job.yaml").write_text("name: balls\n")
    with opened_trackers(names, run, "balls", Console(file=text), folder) as trackers:
        for tracker in trackers:
            tracker.describe({"training": {"learning_rate": 0.01, "loss": None}})
            for event in events:
                tracker.write(event, list(reader.points(event)))
            tracker.attach([folder / "job.yaml", folder / "missing"])
    return text.getvalue()


def _run(name: str = "run-1") -> mlflow.entities.Run:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("balls")
    (found,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    return found


@needs_server
def test_curves_settings_and_files_arrive_once(
    server: int, at: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(server)
    assert _send(tmp_path, ["mlflow"], events=EVENTS[:4]) == ""
    assert _send(tmp_path, ["mlflow"]) == "", "whoever watches again sends the first events again"
    found = _run()
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {
        "sites/east/train/loss": 0.7,
        "sites/east/validation/dice": 0.4,
        "sites/east/validation_by_class/left _T1_": 0.3,
        "sites/east/test/dice": 0.5,
        "validation/dice": 0.4,
        "test/dice": 0.5,
        "time/round_s": 5.0,
    }
    told = {"training.learning_rate": "0.01", "run.rounds": "2", "run.sites": "2", "run.strategy": "fedavg"}
    assert told.items() <= found.data.params.items()
    client = mlflow.MlflowClient()
    history = client.get_metric_history(found.info.run_id, "sites/east/train/loss")
    assert [(point.step, point.value, point.timestamp) for point in history] == [(2, 0.9, 101000), (4, 0.7, 102000)]
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["job.yaml"]


@needs_server
def test_a_run_that_failed_is_shown_as_failed(server: int, at: Callable[[int], None], tmp_path: Path) -> None:
    at(server)
    _send(tmp_path, ["mlflow"], "run-2", [*EVENTS[:2], Failed(time=110.0, reason="no site is left")])
    assert _run("run-2").info.status == "FAILED"


@needs_server
@pytest.mark.parametrize(
    ("events", "error", "goes_on", "status"),
    [
        ([*EVENTS[:2], Failed(time=110.0, reason="no site is left")], SpecError("it failed"), False, "FAILED"),
        (EVENTS[:2], KeyboardInterrupt(), False, "KILLED"),
        (EVENTS[:2], KeyboardInterrupt(), True, "RUNNING"),
        (EVENTS, KeyboardInterrupt(), True, "FINISHED"),
    ],
)
def test_a_run_that_is_left_keeps_its_own_state(
    server: int,
    at: Callable[[int], None],
    tmp_path: Path,
    events: list[Event],
    error: BaseException,
    goes_on: bool,
    status: str,
) -> None:
    at(server)
    folder = tmp_path / f"left-{status}"
    with (
        contextlib.suppress(type(error)),
        tracked(["mlflow"], folder, "balls", Console(file=io.StringIO()), goes_on) as (tracker,),
    ):
        for event in events:
            tracker.write(event, [])
        raise error
    assert _run(folder.name).info.status == status


@needs_server
def test_what_the_server_refuses_is_left_out_and_told_once(
    server: int, at: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(server)
    monkeypatch.setattr(tracking, "_name", lambda key: key)  # as of a server that takes fewer names
    text = io.StringIO()
    with opened_trackers(["mlflow"], "run-5", "balls", Console(file=text), tmp_path) as (tracker,):
        for name in ("a//b", "../c", "d"):
            tracker.write(EVENTS[0], [Point("mean", name, 0.5, 1)])
    assert (_run("run-5").data.metrics, _run("run-5").info.status) == ({"d": 0.5}, "FINISHED")
    assert len(text.getvalue().splitlines()) == 1
    assert "mlflow refuses a part of the run (INVALID_PARAMETER_VALUE" in text.getvalue()


@needs_server
def test_a_run_that_the_server_refuses_is_given_up_at_once(
    server: int, at: Callable[[int], None], tmp_path: Path
) -> None:
    at(server)
    mlflow.MlflowClient().delete_experiment(mlflow.MlflowClient().create_experiment("old"))
    text = io.StringIO()
    with opened_trackers(["mlflow"], "run-6", "old", Console(file=text), tmp_path) as (tracker,):
        tracker.write(EVENTS[0], [Point("mean", "d", 0.5, 1)])
    assert len(text.getvalue().splitlines()) == 1
    assert "mlflow refuses a part of the run" in text.getvalue()


@needs_server
@pytest.mark.parametrize("run", ["it's", 'a "run"', 'it\'s a \\ "run"'])
def test_odd_names_arrive_and_are_found_again(server: int, at: Callable[[int], None], tmp_path: Path, run: str) -> None:
    at(server)
    names = ["a//b", "../c", "/d/", "e/./f", "g" * 300, "h (T1)"]
    for _ in range(2):
        text = io.StringIO()
        with opened_trackers(["mlflow"], run, "balls", Console(file=text), tmp_path) as (tracker,):
            tracker.write(EVENTS[0], [Point("mean", name, 0.5, 1) for name in names])
        assert text.getvalue() == ""
    assert set(_run(run).data.metrics) == {"a/_/b", "_/c", "_/d/_", "e/_/f", "g" * 250, "h _T1_"}


_LATE = """
import io, sys, threading
from pathlib import Path
from rich.console import Console
from oncofed.job.curves import Point
from oncofed.job.tracking import opened_trackers
from oncofed.rounds.events import Started

name, folder = sys.argv[1], Path(sys.argv[2])
(folder / "job.yaml").write_text("name: balls")
with opened_trackers([name], "late", "late", Console(file=io.StringIO()), folder) as (tracker,):
    tracker.describe({"a": 1})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tracking")], "it waits"
    known = set(sys.modules)
    tracker.write(Started(sites=["east"], rounds=2, steps_per_round=4), [Point("mean", "loss", 0.5, 1)])
    tracker.attach([folder / "job.yaml"])
    tracker.close()
print(*sorted(module for module in set(sys.modules) - known if module.startswith((name, "IPython"))))
"""


@pytest.mark.parametrize("name", [pytest.param("mlflow", marks=needs_server), "wandb"])
def test_libraries_are_imported_before_their_threads_start(
    name: str, request: pytest.FixtureRequest, at: Callable[[int], None], tmp_path: Path
) -> None:
    if name == "mlflow":
        at(request.getfixturevalue("server"))
    line = [sys.executable, "-c", _LATE, name, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@needs_server
@pytest.mark.slow
@pytest.mark.thorough
def test_a_server_that_is_away_delays_nothing_and_gets_all_in_the_end(
    at: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, text = free_port(), io.StringIO()
    at(port)
    monkeypatch.setattr(tracking, "_SECONDS_BETWEEN_TRIES", 0.1)
    with opened_trackers(["mlflow"], "run-3", "balls", Console(file=text), tmp_path) as trackers:
        curves = Curves(tmp_path / "tensorboard", trackers)
        for event in EVENTS:
            curves.write(event)
        curves.close()
        wait_for(lambda: "run goes on" in text.getvalue(), "it is told")
        process = _start(tmp_path, port)
        try:
            wait_for(lambda: _answers(port), "MLflow answers")
            trackers[0].close()
            assert _run("run-3").data.metrics["validation/dice"] == 0.4
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
    assert len(text.getvalue().splitlines()) == 1


def test_what_could_not_be_sent_is_told_with_the_command(
    at: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(free_port())
    monkeypatch.setattr(tracking, "_SECONDS_AT_THE_END", 0.5)
    assert "oncofed job track RUN --to mlflow" in _send(tmp_path, ["mlflow"])


@pytest.mark.parametrize("user", ["reader:secret@", "reader:se@cret@", "reader:sec/ret@"])
def test_the_servers_password_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}127.0.0.1:{free_port()}")
    monkeypatch.setattr(tracking, "_SECONDS_AT_THE_END", 2.0)
    text = _send(tmp_path, ["mlflow"])
    assert "does not take the curves" in text
    assert not [part for part in ("reader", "secret", "cret", "sec/") if part in text]


def test_offline_files_hold_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):  # the second replaces the first
        assert _send(tmp_path, ["wandb"]) == ""
        (folder,) = (tmp_path / "wandb").glob("offline-run-*-run-1")
    (record,) = folder.glob("*.wandb")
    held = record.read_bytes()
    for name in (b"sites/east/train/loss", b"validation/dice", b"test/dice", b"training.learning_rate"):
        assert name in held
    assert (folder / "files" / "job.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [("neptune", "known are mlflow and wandb"), ("mlflow", "set MLFLOW_TRACKING_URI to your server")],
)
def test_what_is_missing_is_told_before_anything_runs(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError, match=told), opened_trackers([name], "run", "job", Console(), tmp_path):
        pass


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_library_that_is_not_installed_is_named(
    name: str, at: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(1)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SpecError, match=r"oncofed\[tracking\]"), opened_trackers([name], "r", "j", Console(), tmp_path):
        pass


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["job", "track", str(tmp_path), "--to", "wandb"])
    assert isinstance(done.exception, SpecError) or "has no events.jsonl" in done.output


def test_settings_are_named_by_their_sections() -> None:
    assert flat({"a": {"b": [1, 2], "c": None}, "d": True}) == {"a.b": "[1, 2]", "d": "True"}
