"""CUDA in the processes that jobs run in: forks, confined ones, and several that share a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.local_training import SiteContext
from oncofed.client.sandboxed import SandboxedTraining
from oncofed.flare.runtime.forkserver import ForkServer, JobCommand
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import TrainRequest
from oncofed.packs.load import load_pack
from oncofed.packs.pack import make_pack
from oncofed.processes import process_environment
from oncofed.sandbox import what_is_missing
from oncofed.site.gpu_checks import check_gpus
from oncofed.training import Plan
from synthetic import Voice, make_package

pytestmark = pytest.mark.gpu

# What a pack's module says as it is imported, and each time that its network computes.
_PACK_LOOKS = """
import torch

assert torch.cuda.is_initialized(), "CUDA begins before the code comes"
_seen = set()


def _look(module, inputs, output):
    if isinstance(output, torch.Tensor) and output.device.type not in _seen:
        _seen.add(output.device.type)
        import os, pathlib
        pathlib.Path(os.environ["HOME"], "devices.txt").write_text(" ".join(sorted(_seen)))


torch.nn.modules.module.register_module_forward_hook(_look)
"""

_JOB = """
import json, sys, torch
from pathlib import Path

forked = torch.cuda._is_in_bad_fork()
layer = torch.nn.Conv2d(8, 8, 3).cuda()
image = torch.ones(2, 8, 32, 32, device="cuda")
layer(image).square().mean().backward()
found = bool(torch.isfinite(layer.weight.grad).all())
Path(sys.argv[1]).write_text(json.dumps({"bad_fork": forked, "finite": found}))
"""

_SHARES = """
import json, sys, time, torch
from pathlib import Path
from oncofed.client.compute_slot import MachineTurn

turn, stays = MachineTurn(), []
for _ in range(3):
    with turn.hold(lambda: False):
        begun = time.monotonic()
        (torch.ones(1 << 28, device="cuda") * 2).sum().item()
        held = torch.cuda.memory_reserved()
        ended = time.monotonic()
    stays.append((begun, ended, held, torch.cuda.memory_reserved()))
Path(sys.argv[1]).write_text(json.dumps(stays))
"""


@pytest.mark.skipif(what_is_missing() is not None, reason=f"no process can be confined: {what_is_missing()}")
def test_a_packs_network_trains_on_the_gpu_in_its_confined_process(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    harmless = make_pack(make_package(tmp_path / "wide_net"), None)
    pack = make_pack(make_package(tmp_path / "looks" / "wide_net", _PACK_LOOKS), None)
    load_pack(harmless)
    model = {"code": harmless.digest, "network": "wide_net"}
    declared = Plan.model_validate(spec.plan().model_dump() | {"model": model}).declared().model_dump()
    plan = Plan.model_validate({**declared, "model": {**declared["model"], "code": pack.digest}})
    context, voice = SiteContext(site="east", data=two_sites["east"], state=tmp_path / "state"), Voice()
    weights = Plan.model_validate({**declared, "model": model}).initial_weights()
    training = SandboxedTraining(plan=plan, federation=FederationPlan(), context=context, reporter=voice, pack=pack)
    try:
        assert training.prepare()["train"] == 5, voice.notes
        result = training.train(TrainRequest(weights=weights, round=1), lambda: False)
    finally:
        training.close()
    assert result.steps > 0
    assert any(float(value.abs().sum()) > 0 for value in result.delta.values())
    assert (context.state / "scratch" / "devices.txt").read_text() == "cuda"


def test_a_fork_of_the_process_that_imported_everything_uses_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(_JOB)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    server = ForkServer(environment)
    try:
        assert server.fork(JobCommand("job", [str(tmp_path / "out.json")], environment)).wait(300) == 0
    finally:
        server.kill()
    assert json.loads((tmp_path / "out.json").read_text()) == {"bad_fork": False, "finite": True}


def test_two_processes_take_turns_and_leave_each_other_the_memory(tmp_path: Path) -> None:
    environment = process_environment(tmp_path / "tmp", 2)
    outputs = [tmp_path / f"{number}.json" for number in range(2)]
    started = [subprocess.Popen([sys.executable, "-c", _SHARES, str(out)], env=environment) for out in outputs]
    assert [process.wait(300) for process in started] == [0, 0]
    stays = sorted(tuple(stay) for out in outputs for stay in json.loads(out.read_text()))
    assert all(before[1] <= after[0] for before, after in pairwise(stays))
    assert all(held >= 1 << 30 and kept < 1 << 26 for _, _, held, kept in stays)


def test_the_doctor_has_each_gpu_compute() -> None:
    checks = [check for check in check_gpus() if check.name == "gpu"]
    assert checks
    assert all(check.state != "fail" and "computes" in check.found for check in checks), checks


@pytest.mark.parametrize("named", ["99", "GPU-ffffffff"])
def test_a_gpu_that_is_named_and_not_there_is_told(named: str) -> None:
    script = (
        "from oncofed.devices import training_device; from oncofed.errors import TrainingError\n"
        "try:\n    print(training_device())\nexcept TrainingError as error:\n    print(error)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": named}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "the GPU cannot be used: CUDA_VISIBLE_DEVICES names" in done.stdout
