"""Each network trains to the same bits again."""

from __future__ import annotations

import torch

from gpu_checks.context import Context
from gpu_checks.data import BRAIN, CT, NUCLEI, SLIDES, TILES, XRAYS, Changes, trainer_of
from oncofed.errors import OncofedError

_STEPS = 4
# (network, job with data for it, what it needs to be told)
_NETWORKS: tuple[tuple[str, str, Changes], ...] = (
    ("dynunet", CT, {}),
    ("unet", BRAIN, {}),
    ("unet", NUCLEI, {}),
    ("resnet18", TILES, {}),
    ("densenet121", XRAYS, {}),
    ("attention_mil", SLIDES, {}),
    ("segresnet", BRAIN, {"model": {"channels": None}}),
    ("hovernet", NUCLEI, {"model": {"channels": None}}),
    ("swinunetr", BRAIN, {"model": {"channels": None}}),
    ("efficientnet-b0", TILES, {}),
    ("resnet50", TILES, {}),
    ("vit", TILES, {}),
)
_ON_A_CPU = 2


def check(context: Context) -> None:
    """Train each network twice from the same weights."""
    for network, job, changes in _NETWORKS if context.cuda else _NETWORKS[:_ON_A_CPU]:
        text = f"{network}, {job}"
        with context.report.attempt("same-bits", text):
            _twice(context, network, job, changes, text)


def _twice(context: Context, network: str, job: str, changes: Changes, text: str) -> None:
    found = []
    for _ in range(2):
        model = {**changes.get("model", {}), "network": network}
        training = {"deterministic": True, "compile": "never"}
        try:
            trainer = trainer_of(context, job, {**changes, "model": model, "training": training})
            trainer.train(_STEPS if context.cuda else 2)
        except OncofedError as error:
            # A network that cannot repeat itself is refused, and so nothing is promised of it.
            context.report.figure(f"{text}: refused", error=str(error))
            return
        found.append(trainer.weights())
    one, two = found
    differing = [name for name, values in one.items() if not torch.equal(values, two[name])]
    context.report.claim("same-bits", not differing, text, tensors=len(one), differing=differing[:3])
