"""A job as a plain FLARE folder: JSON only.

``nvflare job submit`` takes it, and no site runs code that it did not install itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from oncofed.errors import SpecError
from oncofed.federation.exchange import TASK_PREPARE, TASK_SUBMIT_MODEL, TASK_TRAIN, TASK_VALIDATE
from oncofed.job.spec import JobSpec

# FLARE's own default is two seconds; an idle site asks again after this many.
_IDLE_SECONDS = 0.05
# A site that vanished is given up after this many seconds; FLARE's own default is a minute.
_LOST_AFTER_SECONDS = 10.0


def export_job(spec: JobSpec, out: Path, force: bool = False) -> Path:
    """Write ``out`` as a FLARE job folder and return it.

    Args:
        spec: the job.
        out: the folder to write; its name becomes FLARE's name for the job.
        force: replace ``out`` where it is a job folder already.

    Raises:
        SpecError: ``out`` exists and may not be replaced.
    """
    if out.exists():
        if not force or not (out / "meta.json").is_file():
            raise SpecError(
                f"{out} exists. Name a folder that does not, or give --force to replace a job folder exported before."
            )
        shutil.rmtree(out)
    config = out / "app" / "config"
    config.mkdir(parents=True)
    _write(out / "meta.json", _meta(spec))
    _write(config / "config_fed_server.json", _server(spec))
    _write(config / "config_fed_client.json", _client(spec))
    return out


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _plan(spec: JobSpec) -> dict[str, Any]:
    return spec.plan().model_dump(mode="json")


def _meta(spec: JobSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "resource_spec": {},
        "min_clients": spec.federation.min_sites or 1,
        "deploy_map": {"app": ["@ALL"]},
    }


def _server(spec: JobSpec) -> dict[str, Any]:
    controller = {
        "id": "rounds",
        "path": "oncofed.federation.controller.FederatedAveraging",
        "args": {"plan": _plan(spec), "min_sites": spec.federation.min_sites},
    }
    return {
        "format_version": 2,
        "server": {"task_request_interval": _IDLE_SECONDS},
        "dead_client_grace_period": _LOST_AFTER_SECONDS,
        "workflows": [controller],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def _client(spec: JobSpec) -> dict[str, Any]:
    executor = {
        "path": "oncofed.federation.executor.SiteExecutor",
        "args": {"plan": _plan(spec)},
    }
    return {
        "format_version": 2,
        "default_task_fetch_interval": _IDLE_SECONDS,
        "executors": [{"tasks": [TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE, TASK_SUBMIT_MODEL], "executor": executor}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
