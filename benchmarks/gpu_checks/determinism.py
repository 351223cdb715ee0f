"""Each network trains to the same bits again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

from gpu_checks.context import Context
from gpu_checks.data import BRAIN, CT, NUCLEI, SLIDES, TILES, XRAYS, Changes, trainer_of

_STEPS = 4
# (network, job with data for it, what it needs to be told)
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


def check(context: Context) -> None:
    """Train each network twice from the same weights."""
    for network, job, changes in NETWORKS if context.cuda else NETWORKS[:_ON_A_CPU]:
        text = f"{network}, {job}"
        with context.report.attempt("same-bits", text):
            _twice(context, network, job, changes, text)


def _twice(context: Context, network: str, job: str, changes: Changes, text: str) -> None:
    found = []
    with _told() as told:
        for _ in range(2):
            trainer = trainer_of(context, job, with_network(network, changes))
            trainer.train(_STEPS if context.cuda else 2)
            found.append(trainer.weights())
    one, two = found
    differing = [name for name, values in one.items() if not torch.equal(values, two[name])]
    if told:  # then nothing is promised
        context.report.figure(text, told=told[0], differing=differing[:3])
    else:
        context.report.claim("same-bits", not differing, text, tensors=len(one), differing=differing[:3])


def with_network(network: str, changes: Changes) -> Changes:
    """Return the changes of a job that train another network, and are to repeat themselves."""
    model = {**changes.get("model", {}), "network": network}
    return {**changes, "model": model, "training": {"deterministic": True, "compile": "never"}}


@contextlib.contextmanager
def _told() -> Iterator[list[str]]:
    """Have what the log says of operations that cannot repeat themselves."""
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
