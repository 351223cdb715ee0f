"""A killed training resumes to the same bits.

Also which failures a step survives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oncofed.data.cases import read_cases
from oncofed.errors import TrainingError
from oncofed.job.spec import JobSpec
from oncofed.training import Plan, Trainer, compiling
from oncofed.training.checkpoint import previous_of, read_facts

SCRIPT = """
import json, sys
from pathlib import Path
from oncofed.lean_imports import lean_imports
with lean_imports():
    from oncofed.data.cases import read_cases
    from oncofed.training import Plan, Trainer

plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
cases = read_cases(Path(sys.argv[2]), plan.data.split, plan.seed)
trainer = Trainer(plan, cases, "site-1", checkpoint=Path(sys.argv[3]))
trainer.prepare()
while trainer.steps_done < 40:
    trainer.train(4)
    print(trainer.steps_done, flush=True)
"""


def _trainer(plan: Plan, site: Path, checkpoint: Path | None = None) -> Trainer:
    return Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1", checkpoint=checkpoint)


@pytest.fixture
def plan(spec: JobSpec) -> Plan:
    return spec.changed({"training": {"steps_per_round": 40}, "rounds": {"number": 1}}).plan()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(plan: Plan, site: Path, tmp_path: Path) -> None:
    checkpoint, description = tmp_path / "checkpoint", tmp_path / "plan.json"
    description.write_text(plan.model_dump_json())
    command = [sys.executable, "-c", SCRIPT, str(description), str(site), str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if int(line) >= 12:
                os.kill(process.pid, signal.SIGKILL)
                break
    resumed = _trainer(plan, site, checkpoint)
    assert 12 <= resumed.steps_done < 40
    resumed.train(40 - resumed.steps_done)
    whole = _trainer(plan, site)
    whole.train(40)
    expected = whole.weights()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.weights().items())
    assert resumed.train(3) == whole.train(3)


def test_a_checkpoint_is_private_and_names_no_case(plan: Plan, site: Path, tmp_path: Path) -> None:
    trainer = _trainer(plan, site, tmp_path / "checkpoint")
    trainer.train(2)
    assert (tmp_path / "checkpoint").stat().st_mode & 0o777 == 0o600
    content = (tmp_path / "checkpoint").read_bytes()
    assert not any(case.name.encode() in content for case in trainer.cases)
    assert list(tmp_path.glob(".checkpoint*")) == []


def test_checkpoints_alternate_between_two_files(plan: Plan, site: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    trainer = _trainer(plan, site, checkpoint)
    trainer.train(1)
    first = checkpoint.stat().st_ino
    trainer.train(1)
    assert previous_of(checkpoint).stat().st_ino == first
    trainer.train(1)
    assert checkpoint.stat().st_ino == first
    assert [read_facts(path)["steps_done"] for path in (previous_of(checkpoint), checkpoint)] == [2, 3]
    assert sorted(tmp_path.glob("*checkpoint*")) == [previous_of(checkpoint), checkpoint]


def test_a_checkpoint_of_something_else_or_a_broken_one_is_refused(plan: Plan, site: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    _trainer(plan, site, checkpoint).train(1)
    with pytest.raises(TrainingError, match=r"of another job, site or network\. Delete it"):
        _trainer(plan.model_copy(update={"seed": 9}), site, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="not a checkpoint of a training"):
        _trainer(plan, site, checkpoint)


class _Narrow(nn.Module):
    """A network that fits a limited number of samples."""

    def __init__(self, network: nn.Module, fits: int) -> None:
        super().__init__()
        self.network, self.fits, self.seen = network, fits, 0

    def forward(self, image: Tensor) -> Tensor:
        self.seen = max(self.seen, len(image))
        if len(image) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(image)


def test_short_memory_halves_batches_without_changing_results(plan: Plan, site: Path) -> None:
    # Adam would make much of the last bit of a gradient that is zero but for rounding.
    settings = {"batch_size": 6, "optimizer": "sgd"}
    plan = plan.model_copy(update={"training": plan.training.model_copy(update=settings)})
    whole = _trainer(plan, site)
    expected = whole.train(3)
    narrow = _trainer(plan, site)
    narrow._gradients.forward = _Narrow(narrow.network, 2)
    assert narrow.train(3) == pytest.approx(expected, rel=1e-5)
    assert narrow._gradients.micro_batch == 2
    for name, value in narrow.weights().items():
        torch.testing.assert_close(value, whole.weights()[name], atol=1e-4, rtol=1e-4)
    never = _trainer(plan, site)
    never._gradients.forward = _Narrow(never.network, 0)
    with pytest.raises(TrainingError, match="one sample alone does not fit"):
        never.train(1)


class _FullOnce(nn.Module):
    """A network that runs out of memory once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.failed: weakref.ref[Tensor] | None = None

    def forward(self, image: Tensor) -> Tensor:
        output = self.network(image)
        if self.failed is None:
            self.failed = weakref.ref(output)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output


def test_memory_of_a_failed_pass_is_freed_before_the_retry(
    plan: Plan, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(plan, site)
    network = _FullOnce(trainer.network)
    trainer._gradients.forward = network
    batch = next(trainer.prepare())
    held: list[bool] = []
    gradients: list[bool] = []

    def empty_cache() -> None:
        assert network.failed
        held.append(network.failed() is not None)
        gradients.append(any(parameter.grad is not None for parameter in trainer.network.parameters()))

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    trainer._step(batch)
    assert held == gradients == [False]
    assert trainer._gradients.micro_batch == 1


def test_out_of_memory_errors_of_nvidias_libraries_halve_too(plan: Plan, site: Path) -> None:
    trainer = _trainer(plan, site)
    network = trainer.network

    def forward(image: Tensor) -> Tensor:
        if len(image) > 1:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return network(image)  # type: ignore[no-any-return]

    trainer._gradients.forward = forward
    trainer.train(1)
    assert trainer._gradients.micro_batch == 1


@pytest.mark.parametrize(("place", "told"), [("network", "the network"), ("state", "the optimizer's state")])
def test_a_network_that_does_not_fit_is_reported_in_one_line(
    plan: Plan, site: Path, monkeypatch: pytest.MonkeyPatch, place: str, told: str
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    if place == "network":
        monkeypatch.setattr(nn.Module, "to", full)
    else:
        monkeypatch.setattr("oncofed.training.trainer.build_optimizer", full)
    with pytest.raises(TrainingError, match=f"^{told} does not fit into what is free of the GPU's memory"):
        _trainer(plan, site)


class _Sometimes(nn.Module):
    """A network that says nonsense in its second step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return self.network(image) * (float("nan") if self.calls == 2 else 1.0)


def test_one_batch_that_is_not_finite_is_left_out(plan: Plan, site: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = _trainer(plan, site)
    trainer._gradients.forward = _Sometimes(trainer.network)
    before = trainer.weights()
    trainer.train(1)
    once = trainer.weights()
    assert any(not torch.equal(before[name], once[name]) for name in before)
    loss = trainer.train(3)
    assert torch.isfinite(torch.tensor(loss))
    assert "left out 1 of 3 steps" in caplog.text
    assert all(torch.isfinite(value).all() for value in trainer.weights().values())


def test_blocks_that_are_computed_twice_change_no_result(plan: Plan, site: Path) -> None:
    twice = plan.model_copy(update={"training": plan.training.model_copy(update={"recompute_activations": True})})
    expected = _trainer(plan, site)
    expected.train(3)
    trainer = _trainer(twice, site)
    trainer.train(3)
    assert trainer.weights().keys() == expected.weights().keys()
    for name, value in trainer.weights().items():
        torch.testing.assert_close(value, expected.weights()[name], atol=1e-5, rtol=1e-5)


def test_a_failing_compiler_is_reported_and_skipped(
    plan: Plan, site: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(network: nn.Module, **options: object) -> nn.Module:
        def forward(*inputs: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler found")

        return forward  # type: ignore[return-value]

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compiling, "can_compile", lambda: None)
    monkeypatch.setenv(compiling.CACHE_VARIABLE, str(site))
    always = plan.model_copy(update={"training": plan.training.model_copy(update={"compile": "always"})})
    assert _trainer(always, site).train(2) == _trainer(plan, site).train(2)
    assert "torch.compile failed (no C++ compiler found)" in caplog.text


def test_where_nothing_can_be_compiled_the_training_is_the_same(
    plan: Plan, site: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "can_compile", lambda: "this process may start no others")
    always = plan.model_copy(update={"training": plan.training.model_copy(update={"compile": "always"})})
    assert _trainer(always, site).train(2) == _trainer(plan, site).train(2)
    assert caplog.text.count("torch.compile cannot be used here: this process may start no others.") == 1
