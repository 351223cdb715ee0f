"""Training samples a second of each task.

Against a plain loop and the network alone. All programs train the same network on the same generated data with the same
batch size:

- oncofed: ``Trainer.train``, as at a site;
- the baseline of a volume's segmentation: MONAI's tutorial loop (cached deterministic transforms, random ones for each
  patch in the workers of a ``DataLoader``, float32, ``DiceCELoss``, AdamW); of the other tasks: the same input and loss
  with random changes on the CPU, a step after the other, float32, AdamW that is not fused;
- the limit: forward and backward of the network alone on one batch, in oncofed's precision.

The roofline is the best possible step: operations of one forward and backward pass, by torch's ``FlopCounterMode``,
over the rate of a matrix product. The ablation removes or adds one part of oncofed's step at a time. On a GPU all is
compiled from the first step on, as in a long run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.bench import Bench, Settings
from harness.profiling import busy_share
from harness.results import Limit, Target
from oncofed.algorithms.scaffold import ControlVariates
from oncofed.data.batches import BatchStream
from oncofed.data.cases import Cases, read_cases
from oncofed.data.prepared import PreparedCases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.job.spec import read_job
from oncofed.training import Plan, Trainer
from synthetic import make_nuclei, make_slides, make_textures
from volumes import make_volumes, tutorial_loop

_WARM_STEPS = 5
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """A job's training on generated data."""

    name: str
    plan: Plan
    dataset: Path
    cases: Cases
    steps: int

    @property
    def amount(self) -> int:
        """Samples of one call."""
        return self.steps * self.plan.training.batch_size

    def trainer(self, bench: Bench, checkpoint: Path | None = None) -> Trainer:
        """Return a trainer whose data is prepared."""
        trainer = Trainer(self.plan, self.cases, "bench", bench.device, checkpoint)
        trainer.prepare()
        return trainer


def run(bench: Bench) -> None:
    """Measure every task, then each part of the loop."""
    volumes = _volumes(bench)
    _compare(bench, volumes, tutorial_loop(volumes.plan, volumes.dataset, bench.device, _workers()), "MONAI's loop")
    for work in (_nuclei(bench), _tiles(bench), _bags(bench)):
        _compare(bench, work, plain_loop(work, bench.device), "plain loop")
    _ablate(bench, volumes)


def _compare(bench: Bench, work: Work, theirs: Iterator[Any], name: str) -> None:
    trainer = work.trainer(bench)
    precision = str(trainer._gradients.precision).removeprefix("torch.")
    ceiling = network_alone(trainer)
    programs: dict[str, Callable[[], object]] = {
        "oncofed": lambda: trainer.train(work.steps),
        name: lambda: [next(theirs) for _ in range(work.steps)],
    }
    alone = bench.best(lambda: [next(ceiling) for _ in range(work.steps)], 3)
    settings: Settings = {
        "network": work.plan.model.network,
        "patch": "×".join(map(str, work.plan.data.patch)),
        "batch": work.plan.training.batch_size,
        "precision": precision,
        "compiled": trainer._gradients.compiling.form != "eager",
    }
    figure = bench.race(
        f"{work.name}, training",
        programs,
        unit="samples/s",
        amount=work.amount,
        limit=Limit(name="forward and backward", value=work.amount / alone),
        target=Target(of="baseline", value=5.0 if bench.cuda else 1.3),
        settings=settings,
    )
    flops = count_operations(trainer)
    if flops:
        assert figure.value is not None
        peak = bench.limits.matrix_rate(trainer._gradients.precision)
        bench.measured(
            f"{work.name}, operations",
            [sample * flops / 1e12 for sample in figure.samples],
            "TFLOP/s",
            "higher",
            settings,
            limit=Limit(name=f"matrix product, {precision}", value=peak / 1e12),
        )
    if bench.cuda:
        busy = busy_share(programs["oncofed"], bench.device)
        bench.measured(
            f"{work.name}, GPU busy", [busy], "share", "higher", settings, target=Target(of="value", value=0.95)
        )
        torch.cuda.reset_peak_memory_stats(bench.device)
        trainer.train(work.steps)
        peak_bytes = torch.cuda.max_memory_allocated(bench.device)
        bench.measured(f"{work.name}, memory", [peak_bytes / 2**30], "GiB", "lower", settings)


def _ablate(bench: Bench, work: Work) -> None:
    """Remove one part at a time."""
    whole = work.trainer(bench)
    whole.train(_WARM_STEPS)
    for name, change in _ABLATIONS.items():
        figure = f"{work.name}, without {name}" if name not in _ADDED else f"{work.name}, with {name}"
        if name in _NEEDS_CUDA and not bench.cuda:
            bench.skip(figure, "samples/s", "it needs a GPU")
            continue
        other = change(work, bench)
        other.train(_WARM_STEPS)
        bench.race(
            figure,
            {"oncofed": partial(other.train, work.steps), "as it is": partial(whole.train, work.steps)},
            unit="samples/s",
            amount=work.amount,
            settings={"network": work.plan.model.network, "batch": work.plan.training.batch_size},
        )


def _other_plan(work: Work, bench: Bench, **training: Any) -> Trainer:
    plan = work.plan.model_copy(update={"training": work.plan.training.model_copy(update=training)})
    return Work(work.name, plan, work.dataset, work.cases, work.steps).trainer(bench)


def _float32(work: Work, bench: Bench) -> Trainer:
    return _other_plan(work, bench, precision="float32")


def _not_compiled(work: Work, bench: Bench) -> Trainer:
    return _other_plan(work, bench, compile="never")


def _other_format(work: Work, bench: Bench) -> Trainer:
    trainer = work.trainer(bench)
    last = torch.channels_last_3d if work.plan.data.dimensions == 3 else torch.channels_last
    plain = trainer._gradients.layout is torch.contiguous_format
    trainer._gradients.layout = last if plain else torch.contiguous_format
    trainer.network.to(memory_format=trainer._gradients.layout)  # type: ignore[call-overload]
    return trainer


def _overwriting(work: Work, bench: Bench) -> Trainer:
    trainer = work.trainer(bench)
    trainer._activations = []  # as MONAI builds them
    return trainer


def _corrected(work: Work, bench: Bench) -> Trainer:
    trainer = work.trainer(bench)
    trainer.gradient_hook = ControlVariates()
    control = {name: torch.zeros_like(value, device=_CPU) for name, value in trainer.network.named_parameters()}
    trainer.gradient_hook.restore(control)
    trainer.gradient_hook.start(trainer.network, {f"control.{name}": value for name, value in control.items()})
    return trainer


def _kept(work: Work, bench: Bench) -> Trainer:
    return work.trainer(bench, bench.folder / "checkpoint.safetensors")


def _not_fused(work: Work, bench: Bench) -> Trainer:
    trainer = work.trainer(bench)
    trainer._optimizer = torch.optim.AdamW(trainer.network.parameters(), 1e-3, fused=False, foreach=False)
    return trainer


def _changes_on_cpu(work: Work, bench: Bench) -> Trainer:
    trainer = work.trainer(bench)
    prepared = PreparedCases(work.cases.train, trainer.input, _CPU)
    batches = BatchStream(prepared, trainer.input, work.plan.training.batch_size, 1, _CPU)

    class Moved(Iterator[Any]):
        def __next__(self) -> Any:
            return {key: value.to(bench.device) for key, value in next(batches).items()}

    trainer._batches = Moved()  # type: ignore[assignment]
    return trainer


def _graphs(work: Work, bench: Bench) -> Trainer:
    trainer = work.trainer(bench)
    trainer._gradients.compiling.form = "replayed"
    trainer._gradients.use("replayed")
    return trainer


_ABLATIONS: dict[str, Callable[[Work, Bench], Trainer]] = {
    "half precision": _float32,
    "compiling": _not_compiled,
    "the other memory format": _other_format,
    "activations that overwrite": _overwriting,
    "SCAFFOLD's correction": _corrected,
    "a checkpoint each turn": _kept,
    "the fused optimizer": _not_fused,
    "changes on the GPU": _changes_on_cpu,
    "CUDA graphs": _graphs,
}
_ADDED = frozenset(
    {
        "CUDA graphs",
        "the other memory format",
        "activations that overwrite",
        "SCAFFOLD's correction",
        "a checkpoint each turn",
    }
)
_NEEDS_CUDA = frozenset({"half precision", "compiling", "the other memory format", "changes on the GPU", "CUDA graphs"})


def _workers() -> int:
    return min(8, os.cpu_count() or 1)


def _changed(bench: Bench, job: str, steps: int, batch: int | None = None, **data: Any) -> Plan:
    spec = read_job(job)
    training = {
        "batch_size": batch or spec.training.batch_size,
        "steps_per_round": steps * (bench.times() + 3) + _WARM_STEPS,
        "warmup_steps": 0,
        "deterministic": False,
        "compile": "always" if bench.cuda else "auto",
    }
    return spec.changed({"data": data, "training": training}).plan()


def _volumes(bench: Bench) -> Work:
    job = "ct_organ_segmentation" if bench.cuda else "brain_tissue_segmentation"
    side, steps = (128, 40) if bench.cuda else (32, 10 if bench.quick else 30)
    # Generated volumes are on the job's grid: reading them is not what is measured.
    plan = _changed(bench, job, steps, 2, patch=[side] * 3, spacing_range=None)
    dataset = make_volumes(bench.folder / "volumes", plan.data, plan.task.classes)
    cases = read_cases(dataset, plan.data.split, plan.seed, plan.supervision())
    return Work(f"{plan.model.network}, {side}³ patches", plan, dataset, cases, steps)


def _nuclei(bench: Bench) -> Work:
    steps = 40 if bench.cuda else 4 if bench.quick else 15
    plan = _changed(bench, "nuclei_segmentation", steps)
    source = make_nuclei(bench.folder / "nuclei", 16, 160)
    register(RegisterOptions(source, plan.data.dataset, bench.folder / "nuclei-set", "segmentation"))
    cases = read_cases(bench.folder / "nuclei-set", plan.data.split, plan.seed, plan.supervision())
    return Work("nuclei, single objects", plan, bench.folder / "nuclei-set", cases, steps)


def _tiles(bench: Bench) -> Work:
    steps = 40 if bench.cuda else 2 if bench.quick else 5
    plan = _changed(bench, "tile_classification", steps)
    source = make_textures(bench.folder / "tiles", list(plan.task.classes.values()), each=12, side=64)
    register(RegisterOptions(source, plan.data.dataset, bench.folder / "tiles-set", "classification"))
    cases = read_cases(bench.folder / "tiles-set", plan.data.split, plan.seed, plan.supervision())
    return Work("tiles, one class each", plan, bench.folder / "tiles-set", cases, steps)


def _bags(bench: Bench) -> Work:
    steps = 40 if bench.cuda else 10 if bench.quick else 30
    plan = _changed(bench, "slide_classification", steps, patch=[128, 128])
    make_slides(bench.folder / "slides", 10, 1024)
    labels = bench.folder / "slides" / "labels.csv"
    register(
        RegisterOptions(
            bench.folder / "slides",
            plan.data.dataset,
            bench.folder / "slides-set",
            "slides",
            table=labels,
            tiles=TileSpec(128, 1.0, 0.25),
        )
    )
    cases = read_cases(bench.folder / "slides-set", plan.data.split, plan.seed, plan.supervision())
    return Work("slides as bags of features", plan, bench.folder / "slides-set", cases, steps)


def plain_loop(work: Work, device: torch.device) -> Iterator[float]:
    """Yield losses of a float32 loop, augmented on the CPU."""
    task = work.plan.build_task()
    input_ = task.input(work.plan.training.augmentation)
    batches = BatchStream(PreparedCases(work.cases.train, input_, _CPU), input_, work.plan.training.batch_size, 1, _CPU)
    network = work.plan.build_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=False, foreach=False)
    while True:
        batch = {name: values.to(device) for name, values in next(batches).items()}
        optimizer.zero_grad()
        loss = task.loss(task.forward(network, batch), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


def network_alone(trainer: Trainer) -> Iterator[None]:
    """Yield after each forward and backward pass.

    Over one batch on the device.
    """
    plan, device = trainer.plan, trainer.device
    network = plan.build_network().to(device)
    batch = dict(next(trainer.prepare()))
    network = network.to(memory_format=trainer._gradients.layout)  # type: ignore[call-overload]
    batch = {k: v.to(memory_format=trainer._gradients.layout) if k == "image" else v for k, v in batch.items()}
    forward: nn.Module = torch.compile(network) if trainer._gradients.compiling.form != "eager" else network  # type: ignore[assignment]
    half = trainer._gradients.precision is not torch.float32
    while True:
        with torch.autocast(device.type, trainer._gradients.precision, enabled=half):
            output = trainer.task.forward(forward, batch)
        output.float().mean().backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)
        yield


def count_operations(trainer: Trainer) -> float:
    """Return the operations of one sample, forward and backward."""
    network = trainer.plan.build_network().to(trainer.device)
    batch = next(trainer.prepare())
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.task.forward(network, batch).float().mean().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / trainer.plan.training.batch_size
