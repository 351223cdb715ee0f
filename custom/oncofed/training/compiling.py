"""Compilation of networks, and replay as CUDA graphs.

Compiling takes one to three minutes, a step some milliseconds: it pays off in long runs. Deterministic jobs
decide by their settings alone; others measure their first steps, and then whether compiling made them faster.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

# As it is; compiled; compiled, and its kernels launched together, as CUDA graphs.
Form = Literal["eager", "compiled", "replayed"]

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

_LOG = logging.getLogger(__name__)
# Share of a step that compiling saves, at least: fusion of memory-bound operations in convolutional networks.
_SAVED_SHARE = 0.25
# The same share of the fastest known steps, 20 ms; for jobs that must not decide by a clock.
_SAVED_SECONDS = 0.005
# A step is bound by launches if launching it on an idle GPU takes nearly as long as the step itself.
_LAUNCHING_SHARE = 0.9
# Smaller differences are noise of two measurements.
_LEAST_SAVED_SHARE = 0.03
_WARM_STEPS, _TIMED_STEPS = 45, 5
_WARM_COMPILED_STEPS = 10


class Timing(NamedTuple):
    """Seconds of a step that began on an idle GPU.

    Until it was done, and until the host had launched all of it.
    """

    step: float
    host: float


def cost_seconds(network: nn.Module, cached: bool) -> float:
    """Estimate how long compiling takes.

    Not measured on a GPU. Tracing took 2.6 s of a core for 52 layers and 10 s for 369; generating and compiling kernels
    takes by experience one to three minutes for such networks, and hardly any time if an earlier process of the run has
    done it.

    Args:
        network: to be compiled.
        cached: whether an earlier process left its kernels.
    """
    layers = sum(1 for module in network.modules() if next(module.children(), None) is None)
    return 5 + 0.05 * layers if cached else 40 + 0.4 * layers


def pays_by_plan(total_steps: int, cost: float) -> bool:
    """Return whether compiling pays in a run.

    Steps are assumed as short as the fastest known ones.

    Args:
        total_steps: of the whole run, so a process that resumes it decides the same.
        cost: seconds; see ``cost_seconds``.
    """
    return total_steps * _SAVED_SECONDS > cost


def choose(timing: Timing, steps_left: int, cost: float, replayable: bool) -> Form:
    """Return the fastest form for the rest of a run.

    Args:
        timing: of a step as it is.
        steps_left: of the run.
        cost: seconds; see ``cost_seconds``.
        replayable: whether the step can be CUDA graphs.
    """
    if steps_left * timing.step * _SAVED_SHARE <= cost:
        return "eager"
    bound_by_launches = timing.host >= _LAUNCHING_SHARE * timing.step
    return "replayed" if bound_by_launches and replayable else "compiled"


def has_paid(before: Timing, after: Timing) -> bool:
    """Return whether a step takes significantly less time."""
    return after.step < (1 - _LEAST_SAVED_SHARE) * before.step


def can_compile() -> str | None:
    """Return why ``torch.compile`` cannot work here, or None.

    CUDA is not touched.
    """
    if torch.version.cuda and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    named = os.environ.get("CC") or os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [named] if named else ["gcc", "clang", "g++"])), None)
    if compiler is None:
        return f"there is no compiler {named}" if named else "there is no C compiler: install gcc"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's header files (Python.h) are missing: install python3-dev"
    try:
        subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=30)
    except PermissionError:
        return "this process may start no others"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{Path(compiler).name} does not run ({type(error).__name__})"
    return None


def use_cache(folder: Path | None) -> bool:
    """Keep compiled kernels in a folder that outlives the process.

    Unless its environment names another.

    The kernels are run, so only this user may write there.

    Args:
        folder: in which the cache's own folder is made; None: the user's folder of caches.

    Returns:
        Whether an earlier process left something there.
    """
    set_by = os.environ.get(CACHE_VARIABLE, "")
    # PyTorch itself sets it to that as soon as a module of the compiler's is imported.
    if not set_by or set_by.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        try:
            base = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oncofed"
            cache = base.absolute() / "compiled"
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = cache.lstat()
        except (OSError, RuntimeError):  # a user without a home is the second
            return False
        if cache.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            _LOG.warning("%s is not this user's alone (mode 700): compiled kernels are not kept", cache)
            return False
        os.environ[CACHE_VARIABLE] = str(cache)
    with contextlib.suppress(OSError):
        return any(Path(os.environ[CACHE_VARIABLE]).iterdir())
    return False


def in_form(function: Callable[..., Any], form: Form, deterministic: bool) -> Callable[..., Any]:
    """Return a function of tensors in a form.

    Args:
        function: as it is.
        form: wanted.
        deterministic: kernels are not chosen by speed, which varies.
    """
    if form == "eager":
        return function
    options = {"deterministic": deterministic, "triton.cudagraphs": form == "replayed"}
    wanted: dict[str, Any] = {name: True for name, value in options.items() if value}
    compiled: Callable[..., Any] = torch.compile(function, options=wanted) if wanted else torch.compile(function)
    return compiled


@dataclass(frozen=True)
class Situation:
    """The facts that decide how a training is compiled.

    Attributes:
        wanted: as ``TrainingSpec.compile``.
        deterministic: whether the run is to give the same bits again.
        total_steps: of the run.
        device: where it trains.
        replayable: whether every step has the same shapes and is one process's.
        cache: folder for compiled kernels; see ``use_cache``.
        agree: makes a decision of several processes the first one's; None: there is one.
    """

    wanted: Literal["auto", "always", "never"]
    deterministic: bool
    total_steps: int
    device: torch.device
    replayable: bool = False
    cache: Path | None = None
    agree: Callable[[bool], bool] | None = None


class Compiling:
    """Switches a training to its fastest form.

    Args:
        situation: of the training.
        network: that is trained.
        use: called with each new form.

    Attributes:
        form: now.
    """

    def __init__(self, situation: Situation, network: nn.Module, use: Callable[[Form], None]) -> None:
        self._situation, self._network, self._use = situation, network, use
        self.form: Form = "eager"
        self._replayable = situation.replayable
        self._measures = situation.wanted == "auto" and situation.device.type == "cuda"
        self._steps, self._timings, self._before = 0, list[Timing](), Timing(0, 0)
        if situation.wanted == "always":
            self._begin("compiled")
        elif self._measures and situation.deterministic:
            self._measures = False
            if pays_by_plan(situation.total_steps, cost_seconds(network, cached=False)):
                self._begin("compiled")

    @contextlib.contextmanager
    def step(self, steps_left: int) -> Iterator[None]:
        """Run a step, measuring the first ones.

        Args:
            steps_left: of the run.
        """
        if self.form == "replayed":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        warm = _WARM_STEPS if self.form == "eager" else _WARM_COMPILED_STEPS
        if not self._measures or self._steps < warm:
            yield
        else:
            self._wait()
            began = _now()
            yield
            launched = _now()
            self._wait()
            self._timings.append(Timing(_now() - began, launched - began))
        self._steps += 1
        if len(self._timings) == _TIMED_STEPS:
            timing = Timing(*map(statistics.median, zip(*self._timings, strict=True)))
            self._timings = []
            self._decide(timing, steps_left)

    def take_in_parts(self) -> None:
        """Turn CUDA graphs off for batches in parts.

        Each part would overwrite the gradients of the previous one.
        """
        self._replayable = False
        if self.form == "replayed":
            self._change("compiled")

    def fall_back(self, error: Exception) -> None:
        """Fall back to a simpler form, since this one failed."""
        plainer: Form = "compiled" if self.form == "replayed" else "eager"
        form = "a step as CUDA graphs" if self.form == "replayed" else "torch.compile"
        _LOG.warning("%s failed (%s); training goes on without it", form, str(error).partition("\n")[0])
        self._measures = self._measures and plainer != "eager"
        self._change(plainer)

    def _decide(self, timing: Timing, steps_left: int) -> None:
        if self.form == "eager":
            self._measures = False
            cost = cost_seconds(self._network, use_cache(self._situation.cache))
            form = choose(timing, steps_left, cost, self._replayable)
            if self._agreed(form != "eager"):
                self._before, self._measures = timing, True
                self._begin(form if form != "eager" else "compiled")
        elif self._agreed(has_paid(self._before, timing)):
            self._measures = False
            _LOG.info("%s: a step takes %.1f ms, %.1f before", self.form, 1e3 * timing.step, 1e3 * self._before.step)
        else:
            _LOG.info("%s saves nothing (%.1f ms a step): training goes on without it", self.form, 1e3 * timing.step)
            self._measures = self.form == "replayed"
            self._change("compiled" if self.form == "replayed" else "eager")

    def _begin(self, form: Form) -> None:
        why = can_compile()
        if why:
            _LOG.warning("torch.compile cannot be used here: %s. Training goes on without it", why)
            self._measures = False
            return
        use_cache(self._situation.cache)
        self._change(form)

    def _change(self, form: Form) -> None:
        self.form, self._steps, self._timings = form, 0, []
        self._use(form)

    def _agreed(self, decision: bool) -> bool:
        return self._situation.agree(decision) if self._situation.agree else decision

    def _wait(self) -> None:
        if self._situation.device.type == "cuda":
            torch.cuda.synchronize(self._situation.device)


_now = time.perf_counter
