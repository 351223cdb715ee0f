"""Seconds to the first round over many small images.

With two simulated sites. Like a newcomer: one folder a class, ``oncofed data register``, ``oncofed job run``; rounds of
30 steps of a DenseNet121. The time is that of the run's command, with its check of all images. The limit is the steps
alone: as many forward and backward passes over one batch, in one process a site.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from harness.bench import Bench, Settings
from harness.results import Limit, Target
from oncofed.data.register import RegisterOptions, register
from oncofed.job.spec import JobSpec
from oncofed.models.model_spec import ModelSpec
from oncofed.models.networks import NetworkRequest, build_network
from oncofed.processes import share_of_threads
from oncofed.rounds.events import EVENTS_FILE, EventReader, RoundEnded

_IMAGES, _IMAGES_QUICK = 30_000, 600
_STEPS, _STEPS_QUICK = 30, 4
_SITES = ("north", "south")
_CLASSES = ("abdomen", "breast", "chest", "hand", "head", "hip")
_SIDE = 64
_TARGET_SECONDS, _TARGET_PROGRESS_SECONDS = 90.0, 10.0
_LONGEST_SECONDS = 1800.0
# A number of images or steps in a line about progress; paths may contain such digits too.
_PROGRESS = re.compile(r"(?<![\w./-])\d+/\d+(?![\w/])|\bstep \d+")


def run(bench: Bench) -> None:
    """Make images, run one round, and measure it."""
    images, steps = (_IMAGES_QUICK, _STEPS_QUICK) if bench.quick else (_IMAGES, _STEPS)
    bench.doing(f"making {images} images for each of {len(_SITES)} sites")
    sites = {}
    for number, site in enumerate(_SITES):
        folder = make_images(bench.folder / "images" / site, images, number)
        register(RegisterOptions(folder, "small_images", bench.folder / "sets" / site))
        sites[site] = bench.folder / "sets" / site
    spec = job(steps)
    settings: Settings = {
        "sites": len(sites),
        "images of a site": images,
        "steps": steps,
        "batch": spec.training.batch_size,
    }
    bench.doing("steps alone")
    alone = steps_alone(spec, len(sites))
    bench.doing("a run")
    told, done = run_until_first_round(spec, sites, bench.folder / "run")
    bench.measured(
        "until the first round is done",
        [done],
        "s",
        settings=settings,
        limit=Limit(name="the steps alone", value=alone),
        target=Target(of="value", value=_TARGET_SECONDS),
    )
    bench.measured(
        "until the first word of progress",
        [told],
        "s",
        settings=settings,
        target=Target(of="value", value=_TARGET_PROGRESS_SECONDS),
    )


def job(steps: int) -> JobSpec:
    """Return a job that classifies images in six classes."""
    return JobSpec.model_validate(
        {
            "schema": 1,
            "name": "small_images",
            "title": "Six kinds of small images",
            "data": {"dataset": "small_images", "modality": "xray", "patch": [_SIDE, _SIDE]},
            "task": {"type": "classification", "classes": dict(enumerate(_CLASSES))},
            "model": {"network": "densenet121"},
            "training": {"steps_per_round": steps, "batch_size": 32},
            "rounds": {"number": 2},
        }
    )


def make_images(folder: Path, count: int, seed: int) -> Path:
    """Write grey JPEG images, one folder a class.

    Classes differ in the direction of their stripes.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:_SIDE, :_SIDE]
    for number, name in enumerate(_CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count // len(_CLASSES)):
            stripes = np.sin((x * np.cos(number) + y * np.sin(number)) / (3 + number) + rng.uniform(0, 6))
            values = 128 + 60 * stripes + rng.normal(0, 20, (_SIDE, _SIDE))
            Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / name / f"{name}-{index:06d}.jpg")
    return folder


def steps_alone(spec: JobSpec, processes: int) -> float:
    """Return the seconds of a round's steps alone.

    In one process a site.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        work = (spec.training.steps_per_round, spec.training.batch_size, share_of_threads(processes))
        return max(pool.map(_steps, [work] * processes))


def _steps(work: tuple[int, int, str]) -> float:
    steps, batch, threads = work
    torch.set_num_threads(int(threads.split(",")[0]))
    network = build_network(NetworkRequest(ModelSpec(network="densenet121"), 1, len(_CLASSES), 2, (_SIDE, _SIDE)), 1)
    images = torch.randn(batch, 1, _SIDE, _SIDE)
    begun = time.perf_counter()
    for _ in range(steps):
        network(images).square().mean().backward()
    return time.perf_counter() - begun


def run_until_first_round(spec: JobSpec, sites: dict[str, Path], folder: Path) -> tuple[float, float]:
    """Return seconds until first progress and first round.

    The run is stopped then.
    """
    folder.mkdir(parents=True)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True, exclude_none=True)), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("oncofed")),
        "job",
        "run",
        str(path),
        "--backend",
        "simulate",
        "--no-baselines",
    ]
    command += ["--out", str(folder / "out")]
    for site, dataset in sites.items():
        command += ["--site", f"{site}={dataset}"]
    begun = time.monotonic()
    with (folder / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        try:
            told = (
                _wait(process, lambda: tells_progress((folder / "printed.txt").read_text("utf-8", "replace"))) - begun
            )
            events = EventReader(folder / "out/federation/simulator/server/oncofed/simulate_job" / EVENTS_FILE)
            done = _wait(process, lambda: any(isinstance(event, RoundEnded) for event in events.read())) - begun
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    return told, done


def tells_progress(printed: str) -> bool:
    """Return whether a complete line of output reports progress."""
    return any(_PROGRESS.search(line) for line in printed.split("\n")[:-1])


def _wait(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> float:
    """Return when something came about.

    Raises:
        RuntimeError: the process ended before.
    """
    until = time.monotonic() + _LONGEST_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run ended before its first round was done (status {process.returncode})")
        time.sleep(0.05)
    return time.monotonic()
