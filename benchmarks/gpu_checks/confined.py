"""An engineer's code trains on the GPU while sandboxed."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_checks import support
from gpu_checks.context import Context
from gpu_checks.data import BRAIN, dataset_of, plan_of
from gpu_checks.forks import Fork
from oncofed import sandbox
from oncofed.algorithms.plan import FederationPlan
from oncofed.client.local_training import SiteContext
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.messages.requests import TrainRequest
from oncofed.packs.load import load_pack
from oncofed.packs.pack import Pack, make_pack
from oncofed.training import Plan
from synthetic import Voice, make_package

_SECONDS = 50.0


def check(context: Context) -> None:
    """Train in the real process; on failure find the cause."""
    missing = sandbox.what_is_missing()
    if missing:
        context.report.skip("confined", f"this machine cannot confine a process: {missing}")
        return
    with tempfile.TemporaryDirectory(dir=context.folder) as temporary:
        works = Fork(partial(_trains, context, Path(temporary))).wait(_SECONDS)
        numbers = works.value or {}
        holds = numbers.get("device") == context.device.type and math.isfinite(numbers.get("loss", math.nan))
        context.report.claim("confined", holds, "", **numbers, **({"error": works.error} if works.error else {}))
    if not holds or not context.cuda:
        _look_for_the_cause(context)


def _trains(context: Context, folder: Path) -> dict[str, Any]:
    """Train like a site, and return its numbers."""
    pack = make_pack(make_package(folder / "wide_net"), None)
    plan, bare = _plans(context, pack)
    here = SiteContext(site="here", data=dataset_of(context, BRAIN), state=folder / "state")
    training = SandboxedTraining(plan=plan, federation=FederationPlan(), context=here, reporter=Voice(), pack=pack)
    try:
        device = training.prepare()["device"]
        result = training.train(TrainRequest(weights=bare.initial_weights(), round=1), lambda: False)
    finally:
        training.close()
    return {"device": device, "loss": result.numbers["loss"], "seconds": result.numbers["train_s"]}


def _plans(context: Context, pack: Pack) -> tuple[Plan, Plan]:
    """Return the plan as sent and as used when sandboxed."""
    load_pack(pack)
    training = {"steps_per_round": 5, "compile": "never"}
    values = plan_of(context, BRAIN, {"training": training}).model_dump()
    values["model"] = {"code": pack.digest, "network": "wide_net"}
    bare = Plan.model_validate(values)
    return bare.declared(), bare


def _look_for_the_cause(context: Context) -> None:
    for text, files, first, calls in (
        ("files alone are confined", True, False, False),
        ("system calls alone are confined", False, False, True),
        ("CUDA begins before system calls alone are confined", False, True, True),
        ("CUDA begins between the two", True, True, True),
    ):
        ended = Fork(partial(_works, context, files, first, calls)).wait(_SECONDS)
        context.report.figure(text, works=not ended.error, **({"error": ended.error} if ended.error else {}))


def _works(context: Context, files: bool, first: bool, calls: bool) -> None:
    data, state = (Path(tempfile.mkdtemp(dir=context.folder)) for _ in range(2))
    tempfile.tempdir = str(state)
    if files:
        support.confine_files(data, state)
    if first:
        with torch.no_grad():
            nn.Conv3d(1, 4, 3, device=context.device)(torch.ones(1, 1, 8, 8, 8, device=context.device))
    if calls:
        sandbox.restrict_calls()
    network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8), nn.Conv3d(8, 2, 1)).to(context.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=True)
    for _ in range(3):
        network(torch.ones(1, 1, 16, 16, 16, device=context.device)).square().mean().backward()
        optimizer.step()
    context.synchronize()
