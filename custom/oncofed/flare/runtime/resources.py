"""Offer a site's GPUs to jobs, within limits and hours."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, time
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.resource_manager_spec import ResourceConsumerSpec
from nvflare.app_common.resource_managers.auto_clean_resource_manager import AutoCleanResourceManager

from oncofed.errors import AllianceError, FederationError, PolicyError
from oncofed.gpus import GPU, VISIBLE_VARIABLE, read_gpus
from oncofed.privacy.policy import read_policy
from oncofed.privacy.time_windows import WINDOW, is_within

LENDING_FILE = "lending.json"
# FLARE's names of what a job requests, and of the sites that it does not name.
ANY_SITE, GPUS, GPU_MEMORY = "@default", "num_of_gpus", "mem_per_gpu_in_GiB"
_RESERVED_SECONDS = 30
_LOOK_SECONDS = 2.0
_JOB = "job"


@dataclass(frozen=True)
class SiteOffer:
    """A site's resources for jobs.

    Attributes:
        gpus: their numbers; None: all.
        jobs_at_once: most jobs of the alliance; None: as many as the GPUs allow.
        hours: by this machine's clock, such as ``18:00-07:00``; None: always.
    """

    gpus: tuple[int, ...] | None = None
    jobs_at_once: int | None = None
    hours: str | None = None

    def to_json(self) -> bytes:
        """Return the content of ``lending.json``."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_open(self, now: time) -> bool:
        """Return whether jobs may run at a time of day."""
        return self.hours is None or is_within(now, [self.hours])


def read_lending(file: Path) -> SiteOffer:
    """Return a site's offer; everything if there is no file.

    Raises:
        AllianceError: the file is broken.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        gpus, hours = values["gpus"], values["hours"]
        if hours is not None and not re.match(WINDOW, hours):
            raise ValueError(hours)
        return SiteOffer(None if gpus is None else tuple(map(int, gpus)), values["jobs_at_once"], hours)
    except FileNotFoundError:
        return SiteOffer()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AllianceError(f"{file} is broken ({type(error).__name__})") from None


class SiteResources(AutoCleanResourceManager):
    """Assigns GPUs to jobs, and ends jobs after hours.

    Each GPU serves one job at a time.

    A job that is ended resumes when the hours begin again: until then the server keeps offering it. A site without a
    GPU trains on its CPU, unless a job requires GPU memory; one whose GPUs cannot be queried trains nothing.

    Args:
        gpus: returns this machine's; None: those that the environment named when this object was created.
        now: returns the time of day.
    """

    def __init__(
        self, gpus: Callable[[], list[GPU]] | None = None, now: Callable[[], time] = lambda: datetime.now().time()
    ) -> None:
        super().__init__({}, _RESERVED_SECONDS)
        # From the first job on, the environment names the last job's GPUs.
        self._gpus, self._now = gpus or partial(read_gpus, dict(os.environ)), now
        self._file = Path()
        self._in_use: set[int | str] = set()
        self._jobs = 0
        self._chosen: list[int | str] = []
        self._refusal = ""
        self._closed = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Find the site's settings, and watch its hours."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.SYSTEM_START:
            workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
            self._file = Path(workspace.get_site_config_dir()) / LENDING_FILE
            watch = threading.Thread(target=self._watch_hours, args=(fl_ctx.get_engine(),), name="hours", daemon=True)
            watch.start()
        elif event_type == EventType.SYSTEM_END:
            self._closed.set()

    def check_resources(self, resource_requirement: dict[str, Any], fl_ctx: FLContext) -> tuple[bool, str]:
        """Reserve a job's resources, or return why not."""
        enough, token = super().check_resources(resource_requirement, fl_ctx)
        return bool(enough), str(token) if enough else self._refusal

    def _check_required_resource_available(self, resource_requirement: dict[str, Any]) -> bool:
        self._chosen, self._refusal = self._choose(resource_requirement)
        return not self._refusal

    def _reserve_resource(self, resource_requirement: dict[str, Any]) -> dict[str, Any]:
        self._in_use |= set(self._chosen)
        self._jobs += 1
        return {_JOB: 1, GPUS: self._chosen}

    def _choose(self, wanted: dict[str, Any]) -> tuple[list[int | str], str]:
        """Return a job's GPUs by CUDA's names, or a refusal."""
        offer = read_lending(self._file)
        if reason := self._why_closed(offer):
            return [], reason
        if offer.jobs_at_once is not None and self._jobs >= offer.jobs_at_once:
            return [], f"it runs {self._jobs} of {offer.jobs_at_once} jobs at once"
        count, memory = wanted.get(GPUS, 0), wanted.get(GPU_MEMORY, 0)
        try:
            found = self._gpus() if count else []
        except FederationError as error:
            self.logger.error("no job is taken: %s", error)
            return [], "its GPUs cannot be asked; the site's own log says more"
        if not found:
            return [], f"it has no GPU, and the job needs one with {memory} GiB" if memory else ""
        offered = [gpu for gpu in found if offer.gpus is None or gpu.number in offer.gpus]
        if count > 1:
            offered = [gpu for gpu in offered if not gpu.is_slice]  # slices cannot communicate with each other
        large = [gpu for gpu in offered if gpu.total_gib >= memory]
        if len(large) < count:
            return [], f"it lends {len(large)} GPUs{f' with {memory} GiB' if memory else ''}, and the job needs {count}"
        free = [gpu for gpu in large if gpu.device not in self._in_use and gpu.free_gib >= memory]
        if len(free) < count:
            return [], f"{len(free)} of its GPUs are free now, and the job needs {count}"
        chosen = sorted(free, key=lambda gpu: gpu.is_taken)[:count]
        for gpu in chosen:
            if gpu.is_taken:
                self.logger.warning(
                    "GPU %d has %.0f of %.0f GiB free for the job: nvidia-smi shows what else uses it; a job's "
                    "gpu_memory_gb keeps it from such a GPU",
                    *(gpu.number, gpu.free_gib, gpu.total_gib),
                )
        return [gpu.device for gpu in chosen], ""

    def _why_closed(self, offer: SiteOffer) -> str | None:
        """Return why no job may run now, or None."""
        if not offer.is_open(self._now()):
            return f"it lends nothing now, but at {offer.hours}"
        try:
            policy = read_policy(self._file.parent)
        except PolicyError:
            return None  # the job's process reports it, and the site's own log
        windows = policy.windows if policy else None
        if windows is None or is_within(self._now(), windows):
            return None
        return f"its policy lets jobs run at {', '.join(windows)}"

    def _deallocate(self, resources: dict[str, Any]) -> None:
        self._in_use -= set(resources.get(GPUS, []))
        self._jobs -= resources.get(_JOB, 0)

    def _resource_to_dict(self) -> dict[str, Any]:
        return {"jobs": self._jobs, "gpus_in_use": sorted(self._in_use, key=str)}

    def _watch_hours(self, engine: Any) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            try:
                self._end_jobs_after_hours(engine)
            except Exception as error:  # noqa: BLE001, PERF203 - retried in two seconds
                self.logger.error("the hours could not be looked at: %s: %s", type(error).__name__, error)

    def _end_jobs_after_hours(self, engine: Any) -> None:
        if self._why_closed(read_lending(self._file)) is None:
            return
        for job_id in list(engine.get_all_job_ids()):
            self.logger.info("the hours are over: job %s ends here, and goes on when they begin", job_id)
            engine.abort_app(job_id)


class GPUAssigner(ResourceConsumerSpec):
    """Shows a job's process its GPUs, and no others."""

    def consume(self, resources: dict[str, Any]) -> None:
        """Set the environment in which a job sees its GPUs."""
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ[VISIBLE_VARIABLE] = ",".join(map(str, resources.get(GPUS, [])))
