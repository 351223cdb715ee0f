"""Submits, watches and fetches jobs with an engineer's kit."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file

from oncofed.alliance.session import SUBMITTED, EngineerSession
from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.artifacts.kept_job import copy_beside_model
from oncofed.artifacts.provenance import PROVENANCE_FILE
from oncofed.errors import FederationError, TransferError
from oncofed.job.card import write_cards
from oncofed.job.curves import Curves, Tracker
from oncofed.job.flare import SPEC_FILE
from oncofed.job.outcome import begin_result, note_incidents, note_preparation, note_rounds, note_scores
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec, parse_job
from oncofed.job.watch import RunView, go_on
from oncofed.report.html import write_report
from oncofed.report.result import Result
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, Event, EventReader
from oncofed.tasks.deletion import WHY_NOT_OVER_SITES

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_TRIES = 0.5
_CONNECT_SECONDS = 30.0


def watch(
    engineer: EngineerSession,
    job_id: str,
    console: Console,
    curves: Path,
    trackers: Sequence[Tracker] = (),
    is_worth_it: Callable[[RunProgress], bool] = go_on,
) -> str:
    """Follow a job through server restarts to its end.

    Args:
        engineer: the session.
        job_id: FLARE's id of the job.
        console: for progress.
        curves: folder for TensorBoard; is replaced.
        trackers: that get the same curves.
        is_worth_it: asked after news; False stops the job.
    """
    shutil.rmtree(curves, ignore_errors=True)
    status = engineer.status(job_id)
    last, shown_why = 0.0, ""

    def look() -> str:
        """Show new events, and return the job's status.

        The status stays as it was if the server does not answer.
        """
        nonlocal last, shown_why
        try:
            events = [event for event in engineer.events(job_id) if event.time > last]
            last = max([last, *(event.time for event in events)])
            view.update(events)
            now = engineer.status(job_id)
            why = engineer.why_waiting(job_id) if now == SUBMITTED else ""
            if why and why != shown_why:
                console.print(f"it waits: {why}", markup=False)
            shown_why = why
            return now
        except TransferError as error:
            console.print(f"{error}; trying again. Ctrl-C ends the watching, not the job", markup=False)
            return status

    stopped = False
    with RunView(console, Curves(curves, trackers)) as view:
        while not status.startswith("FINISHED"):
            status = look()
            if not stopped and not is_worth_it(view.state):
                engineer.stop(job_id)
                stopped = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return status.removeprefix("FINISHED:")


def fetch(engineer: EngineerSession, job_id: str, folder: Path) -> Result:
    """Download a job's result, and write report, model and curves.

    Raises:
        FederationError: the job still runs, or left nothing.
    """
    status = engineer.status(job_id)
    if not status.startswith("FINISHED"):
        raise FederationError(f"job {job_id} is {status}. Wait for its end: oncofed job watch {job_id}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        record = engineer.download(job_id, Path(temporary))
        spec = _spec(Path(temporary))
        (folder / "job.yaml").write_text(spec.to_yaml(), encoding="utf-8")
        events = list(EventReader(record / EVENTS_FILE).read())
        best = record / MODELS_FOLDER / BEST_MODEL
        if best.is_file():
            (folder / "model").mkdir(exist_ok=True)
            shutil.copy(best, folder / "model" / "model.safetensors")
            copy_beside_model(best.parent, folder / "model")
        vouched = best.with_name(PROVENANCE_FILE)
        if vouched.is_file():
            shutil.copy(vouched, folder / PROVENANCE_FILE)
        shutil.copy(record / EVENTS_FILE, folder / EVENTS_FILE)
    return _write(spec, events, folder)


def _write(spec: JobSpec, events: list[Event], folder: Path) -> Result:
    state, curves = RunProgress(), Curves(folder / "tensorboard")
    for event in events:
        state.apply(event)
        curves.write(event)
    curves.close()
    result = begin_result(spec, "federation", "The sites' own data; only weights and approved numbers left them.")
    result.environment = {}
    result.rounds = state.rounds
    note_incidents(result, state)
    model = folder / "model" / "model.safetensors"
    if state.finished is not None and model.is_file():
        result.status = "completed"
        note_rounds(result, state, spec)
        note_preparation(result, state, spec)
        note_scores(result, state, parts=spec.plan().build_task().parts)
        if spec.plan().model.kind == "bag" and result.attention is None:
            result.attention_left_out = WHY_NOT_OVER_SITES
        values = spec.model_dump(mode="json", by_alias=True)
        bundle = spec.plan().write_bundle(model.parent, spec.title, load_file(model), values)
        complete_bundle(bundle, [model.parent, folder])
    else:
        result.status = "stopped" if state.stopped and not state.failed else "failed"
        result.error = state.failed or "the job was stopped before its end"
    if events:
        result.timing.startup_s = state.ready_s or 0.0
        result.timing.total_s = result.timing.federation_s = events[-1].time - events[0].time
    result.write(folder)
    if result.status == "completed":
        write_cards(spec, result, folder)
    write_report(result, {}, folder)
    return result


def _spec(folder: Path) -> JobSpec:
    found = next(iter(folder.rglob(SPEC_FILE)), None)
    if found is None:
        raise FederationError("the job's result does not hold the job: an older oncofed submitted it")
    return parse_job(found)
