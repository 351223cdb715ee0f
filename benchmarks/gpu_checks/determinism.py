"""Each network trains to the same bits again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from gpu_checks.context import Context
from gpu_checks.data import BRAIN, CT, NUCLEI, SLIDES, TILES, XRAYS, Changes, cases_of, plan_of, trainer_of
from oncofed.data.cases import Cases
from oncofed.training import Trainer

_STEPS = 4
# (network, job with data for it, changes of that job)
NETWORKS: tuple[tuple[str, str, Changes], ...] = (
    ("dynunet", CT, {}),
    ("unet", BRAIN, {}),
    ("unet", NUCLEI, {}),
    ("resnet18", TILES, {}),
    ("densenet121", XRAYS, {}),
    ("attention_mil", SLIDES, {}),
    ("segresnet", BRAIN, {"model": {"channels": None}}),
    ("hovernet", NUCLEI, {"model": {"channels": None}, "data": {"patch": [256, 256]}}),
    ("swinunetr", BRAIN, {"model": {"channels": None}}),
    ("efficientnet-b0", TILES, {}),
    ("resnet50", TILES, {}),
    ("vit", TILES, {}),
)
_ON_A_CPU = 2
# Networks that may warn of an operation without deterministic form: none of those that oncofed builds.
MAY_ALERT: frozenset[str] = frozenset()


def check(context: Context) -> None:
    """Train each network twice from the same weights."""
    for network, job, changes in NETWORKS if context.cuda else NETWORKS[:_ON_A_CPU]:
        text = f"{network}, {job}"
        with context.report.attempt("same-bits", text):
            _twice(context, network, partial(trainer_of, context, job, with_network(network, changes)), text)
    text = "densenet121, volumes"
    with context.report.attempt("same-bits", text):
        _twice(context, "densenet121", partial(_of_volumes, context), text)


def _of_volumes(context: Context) -> Trainer:
    """Return a trainer that classifies volumes.

    Its average and max pooling are 3D.
    """
    side = 64 if context.cuda else 32
    plan = plan_of(context, XRAYS, with_network("densenet121", {"data": {"modality": "mri", "patch": [side] * 3}}))
    volumes = cases_of(context, BRAIN)
    cases = tuple(replace(case, label=n % 2, label_values=None, folder=None) for n, case in enumerate(volumes))
    return Trainer(plan, Cases(cases, (), ()), "here", context.device)


def _twice(context: Context, network: str, trainer_again: Callable[[], Trainer], text: str) -> None:
    found = []
    with _told() as told:
        for _ in range(2):
            trainer = trainer_again()
            trainer.train(_STEPS if context.cuda else 2)
            found.append(trainer.weights())
    one, two = found
    differing = [name for name, values in one.items() if not torch.equal(values, two[name])]
    if told and network in MAY_ALERT:  # then nothing is promised
        context.report.figure(text, told=told[0], differing=differing[:3])
        return
    numbers = {"tensors": len(one), "differing": differing[:3], **({"told": told[0]} if told else {})}
    context.report.claim("same-bits", not differing and not told, text, **numbers)


def with_network(network: str, changes: Changes) -> Changes:
    """Return changes for a deterministic job of another network."""
    model = {**changes.get("model", {}), "network": network}
    return {**changes, "model": model, "training": {"deterministic": True, "compile": "never"}}


@contextlib.contextmanager
def _told() -> Iterator[list[str]]:
    """Collect log messages about nondeterministic operations."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "training.deterministic" in record.getMessage():
                told.append(record.getMessage())

    log, listener = logging.getLogger("oncofed"), Listener()
    log.addHandler(listener)
    try:
        yield told
    finally:
        log.removeHandler(listener)
