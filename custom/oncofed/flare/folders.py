"""Where a run keeps what must outlive its processes, at the server and at each site."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from oncofed.client.locks import wait_for_lock
from oncofed.errors import StateError
from oncofed.rounds.events import EVENTS_FILE, MODELS_FOLDER

# In a job's folder, beside its two configurations: weights that the job starts from.
INITIAL_MODEL = "initial_model.safetensors"
# Those of a model that the first is compared with.
AGAINST_MODEL = "against_model.safetensors"
# And code that it brings.
JOB_PACK = "job.pack.zip"
STATE_FOLDER = "oncofed"
# In a job's state at a site, for its own use: figures of single cases, and the model.
CASES_FILE = "test_cases.csv"
OWN_MODEL = "model"
_ENDED = "ended"
_OWNER = ".owner"
# What is of use once a job has ended.
_STAYS = (EVENTS_FILE, CASES_FILE, OWN_MODEL, _ENDED, _OWNER)
_LONGEST_HOLD_SECONDS = 60.0


def state_folder(fl_ctx: FLContext) -> Path:
    """Return a job's folder for its state. FLARE empties its own run folder when it starts a job again."""
    workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
    return Path(workspace.get_root_dir()) / STATE_FOLDER / str(fl_ctx.get_job_id())


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Hold a job's folder: a process whose parent died works on for seconds, while its successor is started.

    Raises:
        StateError: another process did not let go of it for a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _OWNER).open("w") as file:
        deadline = time.monotonic() + _LONGEST_HOLD_SECONDS
        if not wait_for_lock([file], lambda: time.monotonic() > deadline):
            raise StateError(f"{folder}: another process works on this job; end it first")
        yield


def initial_model(fl_ctx: FLContext) -> Path | None:
    """Return the file of weights that a job brings along; None where its seed gives them."""
    brought = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)) / "config" / INITIAL_MODEL
    return brought if brought.is_file() else None


def against_model(fl_ctx: FLContext) -> Path | None:
    """Return the file of weights that a job compares its model with; None where it compares with none."""
    brought = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)) / "config" / AGAINST_MODEL
    return brought if brought.is_file() else None


def hand_over(fl_ctx: FLContext) -> None:
    """Put a job's record and models where FLARE collects what a job leaves, for who fetches it."""
    state = state_folder(fl_ctx)
    run_dir = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_run_dir(fl_ctx.get_job_id()))
    if (state / MODELS_FOLDER).is_dir():
        shutil.rmtree(run_dir / MODELS_FOLDER, ignore_errors=True)
        shutil.copytree(state / MODELS_FOLDER, run_dir / MODELS_FOLDER, copy_function=_second_name)
    if (state / EVENTS_FILE).is_file():
        shutil.copy(state / EVENTS_FILE, run_dir / EVENTS_FILE)


def _second_name(source: str, target: str) -> None:
    """Give a file another name; where the file system knows none, make a copy of it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def note_end(fl_ctx: FLContext) -> None:
    """Note that a job has ended by itself, for the server's main process: no site is to be given it again."""
    (state_folder(fl_ctx) / _ENDED).touch()


def forget_job(root: Path, job_id: str) -> None:
    """Remove what a job that has ended kept in order to go on, and the weights that it brought along.

    Args:
        root: folder of the participant's kit.
        job_id: of the job, which has no process here any more.

    Raises:
        OSError: something could not be removed.
    """
    for path in (root / STATE_FOLDER / job_id).glob("*"):
        if path.name in _STAYS:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in (INITIAL_MODEL, AGAINST_MODEL):
        for path in (root / job_id).glob(f"*/config/{name}"):
            path.unlink(missing_ok=True)


def has_ended(workspace: str, job_id: str) -> bool:
    """Return whether a job has ended by itself."""
    return (Path(workspace) / STATE_FOLDER / job_id / _ENDED).exists()
