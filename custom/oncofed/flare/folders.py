"""Folders of a job, at server and sites."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from oncofed.client.folder import CANDIDATES_FILE, CASES_FILE, DOUBTS_FILE, OWN_MODEL, OWNER_FILE
from oncofed.rounds.events import EVENTS_FILE, MODELS_FOLDER

# Files next to a job's two configurations: its initial weights,
INITIAL_MODEL = "initial_model.safetensors"
# the weights of a model to compare with,
AGAINST_MODEL = "against_model.safetensors"
# and its code.
JOB_PACK = "job.pack.zip"
STATE_FOLDER = "oncofed"
_ENDED = "ended"
# Kept when a job has ended.
_STAYS = (EVENTS_FILE, CASES_FILE, CANDIDATES_FILE, DOUBTS_FILE, OWN_MODEL, _ENDED, OWNER_FILE)


def kit_folder(fl_ctx: FLContext) -> Path:
    """Return the folder of this participant's kit."""
    return Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())


def has_kit(fl_ctx: FLContext) -> bool:
    """Return whether this participant has a kit; none has in a simulation.

    The alliance's root certificate tells: every kit has it, and nobody connects without.
    """
    return (kit_folder(fl_ctx) / "startup" / "rootCA.pem").is_file()


def local_folder(fl_ctx: FLContext) -> Path:
    """Return the folder of this participant's own settings."""
    return Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir())


def job_config(fl_ctx: FLContext) -> Path:
    """Return the folder of the job's configurations."""
    return Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)) / "config"


def state_folder(fl_ctx: FLContext) -> Path:
    """Return the folder of a job's state.

    FLARE empties its own run folder when it starts a job again.
    """
    return kit_folder(fl_ctx) / STATE_FOLDER / str(fl_ctx.get_job_id())


def initial_model(fl_ctx: FLContext) -> Path | None:
    """Return the file of initial weights; None: seeded."""
    brought = job_config(fl_ctx) / INITIAL_MODEL
    return brought if brought.is_file() else None


def against_model(fl_ctx: FLContext) -> Path | None:
    """Return the file of weights to compare with, if any."""
    brought = job_config(fl_ctx) / AGAINST_MODEL
    return brought if brought.is_file() else None


def hand_over(fl_ctx: FLContext) -> None:
    """Copy a job's record and models to FLARE's results folder."""
    state = state_folder(fl_ctx)
    run_dir = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_run_dir(fl_ctx.get_job_id()))
    if (state / MODELS_FOLDER).is_dir():
        shutil.rmtree(run_dir / MODELS_FOLDER, ignore_errors=True)
        shutil.copytree(state / MODELS_FOLDER, run_dir / MODELS_FOLDER, copy_function=_link_or_copy)
    if (state / EVENTS_FILE).is_file():
        shutil.copy(state / EVENTS_FILE, run_dir / EVENTS_FILE)


def _link_or_copy(source: str, target: str) -> None:
    """Create a hard link, or a copy where unsupported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def note_end(fl_ctx: FLContext) -> None:
    """Mark a job as ended: no site restarts it."""
    (state_folder(fl_ctx) / _ENDED).touch()


def has_ended(workspace: str, job_id: str) -> bool:
    """Return whether a job was marked as ended."""
    return (Path(workspace) / STATE_FOLDER / job_id / _ENDED).exists()


def forget_job(root: Path, job_id: str) -> None:
    """Remove an ended job's resume state and initial weights.

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
