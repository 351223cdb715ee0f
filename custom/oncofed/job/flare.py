"""Exports a job as a FLARE job folder.

``nvflare job submit`` takes it, and sites run installed code only.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oncofed.data.profile_plan import ProfilePlan
from oncofed.errors import SpecError
from oncofed.flare.folders import AGAINST_MODEL, INITIAL_MODEL, JOB_PACK
from oncofed.flare.runtime.job_recovery import job_mark
from oncofed.flare.runtime.resources import ANY_SITE, GPU_MEMORY, GPUS
from oncofed.flare.security.submission import job_asks
from oncofed.flare.statistics import site_settings
from oncofed.flare.transfer.decomposer import LARGEST_WHOLE_BYTES, SMALLEST_BYTES
from oncofed.flare.transfer.protocol import message_timeout
from oncofed.flare.wire import TASKS
from oncofed.job.spec import AnyJob, JobSpec, ProfileJobSpec
from oncofed.job.warm_start import require_start
from oncofed.models.foreign import fitting_weights
from oncofed.models.weights import Weights
from oncofed.packs.load import loaded_packs
from oncofed.tasks.calibration import Calibration, read_calibration

# The job as its engineer wrote it, in the job folder.
SPEC_FILE = "job.json"
# Interval at which idle sites fetch tasks; FLARE's default is two seconds.
_IDLE_SECONDS = 0.05
# FLARE's sites pause after each task. A training needs no pause: its server answers once it has a task.
_PAUSE_SECONDS = 0.001
# A silent site counts as lost after this time; FLARE's default is a minute.
_LOST_AFTER_SECONDS = 10.0
# FLARE's default fetches tensors 2 MiB at a time.
_CHUNK_BYTES = 8 << 20
# Without a timeout FLARE waits forever for a reply, also from a process that was killed.
_TASK_CHECK_SECONDS = 1.0
# Tensors that a message names, of many.
_MOST_NAMED = 4


def export_job(
    spec: AnyJob,
    out: Path,
    force: bool = False,
    model: Path | None = None,
    evaluate_only: bool = False,
    against: Path | None = None,
    test: bool = True,
) -> Path:
    """Write ``out`` as a FLARE job folder and return it.

    Args:
        spec: the job.
        out: the folder to write; its name becomes FLARE's name for the job.
        force: replace ``out`` where it is a job folder already.
        model: initial weights as safetensors; None: drawn from the seed.
        evaluate_only: score that model at every site, and train nothing.
        against: weights of another model to compare with on the same patients.
        test: score the best round's model on test cases; False: they stay unseen.

    Raises:
        SpecError: ``out`` exists and may not be replaced, the model or its calibration cannot be read, or adapters have
            no model to start from.
    """
    if out.exists():
        if not force or not (out / "meta.json").is_file():
            raise SpecError(
                f"{out} exists. Name a folder that does not, or give --force to replace a job folder exported before."
            )
        shutil.rmtree(out)
    if isinstance(spec, JobSpec):
        require_start(spec, model)
    config = out / "app" / "config"
    config.mkdir(parents=True)
    if isinstance(spec, JobSpec) and against:
        _add_other_model(spec, config, against)
    if isinstance(spec, JobSpec) and spec.model.code:
        spec = _with_pack(spec, config, model, evaluate_only)
    if isinstance(spec, ProfileJobSpec):
        server, client = _profile_server(spec), _profile_client(spec.profile)
        asks = job_asks(spec.profile.dataset, quorum=spec.min_sites or 0)
        _write(out / "meta.json", {**_meta(spec.name, spec.min_sites), "custom_props": asks})
    else:
        calibration = read_calibration(model.parent) if model and evaluate_only else None
        transfer = _transfer(spec)
        server = _server(spec, evaluate_only, calibration, test) | transfer
        client = _client(spec) | transfer
        # Any number of sites may start the job: others join later, and each round checks its quorum.
        _write(
            out / "meta.json", {**_meta(spec.name, None), **_resources(spec), "custom_props": job_mark() | _facts(spec)}
        )
        # FLARE returns the job folder with the result: `oncofed job fetch` reads the job from it.
        _write(config / SPEC_FILE, spec.model_dump(mode="json", by_alias=True))
        if model and not spec.model.code:
            _add_initial_model(spec, config, model, evaluate_only)
    _write(config / "config_fed_server.json", server)
    _write(config / "config_fed_client.json", client)
    return out


def _with_pack(spec: JobSpec, config: Path, model: Path | None, evaluate_only: bool) -> JobSpec:
    """Add a job's code pack and weights to its folder.

    Returns:
        The job with its network's layout declared, for readers that do not run the code.
    """
    pack = next((pack for pack in loaded_packs() if pack.digest == spec.model.code), None)
    if pack is None:
        code = f"{str(spec.model.code)[:12]}…"
        raise SpecError(f"the pack {code} is not loaded: read the job with its code (with_code=True)")
    plan = spec.plan()
    (config / JOB_PACK).write_bytes(pack.content)
    weights = plan.initial_weights()
    if model:
        weights |= _brought(model, weights, evaluate_only)
    save_file({n: v.contiguous() for n, v in weights.items()}, config / INITIAL_MODEL)
    declared = plan.declared()
    return spec.changed({name: getattr(declared, name).model_dump() for name in ("model", "task")})


def _add_initial_model(spec: JobSpec, config: Path, model: Path, evaluate_only: bool) -> None:
    """Add the weights to start from: a file's where they fit by name and shape, else the seed's."""
    own = spec.plan().initial_weights()
    found = _brought(model, own, evaluate_only)
    _save(own | found, model, config / INITIAL_MODEL)


def _add_other_model(spec: JobSpec, config: Path, against: Path) -> None:
    """Add the weights of the model to compare with."""
    weights = _brought(against, spec.plan().initial_weights(), True)
    _save(weights, against, config / AGAINST_MODEL)


def _save(weights: Weights, source: Path, target: Path) -> None:
    """Write weights; where they are all of a file as they stand there, copy its bytes, by which a model is known."""
    if source.is_file():
        stored = load_file(source)
        if stored.keys() == weights.keys() and all(_same(stored[name], weights[name]) for name in stored):
            shutil.copyfile(source, target)
            return
    save_file({name: value.contiguous() for name, value in weights.items()}, target)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _brought(model: Path, own: Weights, all_of_them: bool) -> Weights:
    """Return a file's fitting weights, warning of others."""
    try:
        fitting = fitting_weights(load_file(model), own, model)
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{model}: no weights as safetensors ({type(error).__name__})") from None
    if len(fitting) < len(own):
        if all_of_them:
            raise SpecError(f"{model}: {len(fitting)} of the network's {len(own)} tensors fit, to score it all must")
        anew = sorted(own.keys() - fitting.keys())
        logging.getLogger(__name__).warning(
            "%s: %d of the network's %d tensors are taken; %s%s from the job's seed",
            model,
            len(fitting),
            len(own),
            ", ".join(anew[:_MOST_NAMED]),
            f" and {len(anew) - _MOST_NAMED} others start" if len(anew) > _MOST_NAMED else " start",
        )
    return fitting


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _plan(spec: JobSpec) -> dict[str, Any]:
    return spec.plan().model_dump(mode="json")


def _meta(name: str, min_sites: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": min_sites or 1,
        "deploy_map": {"app": ["@ALL"]},
    }


def _resources(spec: JobSpec) -> dict[str, Any]:
    """Return a job's resources for FLARE's resource managers."""
    wanted: dict[str, float] = {GPUS: spec.resources.gpus}
    if spec.resources.gpu_memory_gb is not None:
        wanted[GPU_MEMORY] = spec.resources.gpu_memory_gb
    return {"resource_spec": {ANY_SITE: wanted}}


def _facts(spec: JobSpec) -> dict[str, Any]:
    """Return facts of a job that sites check on submission."""
    return job_asks(
        spec.data.dataset,
        spec.model.network,
        spec.strategy.name,
        spec.model.code,
        spec.rounds.quorum or 0,
        spec.federation().smallest_sum,
        spec.noise_multiplier,
        spec.noise,
        spec.scores,
    )


def _transfer(spec: JobSpec) -> dict[str, Any]:
    """Return FLARE's transfer settings for a model of this size."""
    size = spec.plan().layout().nbytes
    longest = message_timeout(size)
    chunk = 0 if size < SMALLEST_BYTES else LARGEST_WHOLE_BYTES if size < LARGEST_WHOLE_BYTES else _CHUNK_BYTES
    return {
        "tensor_download_chunk_size": chunk,
        "get_task_timeout": longest,
        "submit_task_result_timeout": longest,
        "task_check_interval": _TASK_CHECK_SECONDS,
    }


def _server(spec: JobSpec, evaluate_only: bool, calibration: Calibration | None, test: bool) -> dict[str, Any]:
    controller = {
        "id": "rounds",
        "path": "oncofed.flare.controller.FederatedTraining",
        "args": {
            "plan": _plan(spec),
            "federation": spec.federation().model_dump(mode="json"),
            "evaluate_only": evaluate_only,
            "calibration": calibration.model_dump(mode="json", by_alias=True) if calibration else None,
            "test": test,
        },
    }
    return _server_config(controller, _PAUSE_SECONDS)


def _server_config(controller: dict[str, Any], pause: float = _IDLE_SECONDS) -> dict[str, Any]:
    return {
        "format_version": 2,
        "server": {"task_request_interval": pause},
        "dead_client_grace_period": _LOST_AFTER_SECONDS,
        "workflows": [controller],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def _client(spec: JobSpec) -> dict[str, Any]:
    executor = {
        "path": "oncofed.flare.executor.SiteExecutor",
        "args": {"plan": _plan(spec), "federation": spec.federation().model_dump(mode="json")},
    }
    return _client_config(executors=[{"tasks": list(TASKS), "executor": executor}])


def _client_config(**sections: Any) -> dict[str, Any]:
    return {
        "format_version": 2,
        "default_task_fetch_interval": _IDLE_SECONDS,
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
        **sections,
    }


def _profile_server(spec: ProfileJobSpec) -> dict[str, Any]:
    arguments = {"plan": spec.profile.model_dump(mode="json"), "min_sites": spec.min_sites}
    return _server_config({"id": "profile", "path": "oncofed.flare.statistics.FederatedProfile", "args": arguments})


def _profile_client(plan: ProfilePlan) -> dict[str, Any]:
    return _client_config(**site_settings(plan))
