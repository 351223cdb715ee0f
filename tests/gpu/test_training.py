"""Training on CUDA: restarts, short memory, precision, the optimizers' first steps, and the same bits again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oncofed.data.batches import BatchStream
from oncofed.data.cases import read_cases
from oncofed.devices import inference_type, training_device, why_unusable
from oncofed.job.spec import JobSpec
from oncofed.training import Plan, Trainer
from oncofed.training.determinism import make_repeatable, use_deterministic_forms
from oncofed.training.optimizer import StepScaler, build_optimizer
from oncofed.training.settings import TrainingSpec

pytestmark = pytest.mark.gpu


def _trainer(plan: Plan, site: Path, checkpoint: Path | None = None) -> Trainer:
    return Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1", checkpoint=checkpoint)


def _plan(spec: JobSpec, **training: object) -> Plan:
    return spec.changed({"training": {"steps_per_round": 40, "compile": "never", **training}}).plan()


def test_the_gpu_is_found_to_compute() -> None:
    assert why_unusable() is None
    assert training_device() == training_device("cuda") == torch.device("cuda")
    assert torch.cuda.is_bf16_supported(including_emulation=False) == (
        inference_type(torch.device("cuda")) is torch.bfloat16
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["auto", "float16", "float32"])
def test_a_restart_goes_on_to_the_same_bits(
    spec: JobSpec, site: Path, tmp_path: Path, optimizer: str, precision: str
) -> None:
    plan = _plan(spec, optimizer=optimizer, precision=precision)
    whole = _trainer(plan, site)
    whole.train(12)
    first = _trainer(plan, site, tmp_path / "state")
    first.train(7)
    resumed = _trainer(plan, site, tmp_path / "state")
    assert resumed.steps_done == 7
    resumed.train(5)
    expected = whole.weights()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.weights().items())


def test_state_of_another_layout_is_taken_up(spec: JobSpec, site: Path, tmp_path: Path) -> None:
    plan = _plan(spec)
    first = _trainer(plan, site, tmp_path / "state")
    for state in first._optimizer.state.values():
        for name, value in state.items():
            state[name] = value.contiguous()
    first._keep()
    first.settle()
    assert _trainer(plan, site, tmp_path / "state").train(3) > 0


class _Narrow(nn.Module):
    """A network that takes all memory where it is given more than one sample."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        output = self.network(image)
        while len(image) > 1:
            output = torch.cat([output, output]) * 1.0  # keeps what it is made of, as a large network does
        return output  # type: ignore[no-any-return]


def test_a_batch_for_which_memory_is_short_is_halved_on_free_memory(spec: JobSpec, site: Path) -> None:
    trainer = _trainer(_plan(spec, batch_size=4), site)
    trainer.train(1)
    before = torch.cuda.memory_allocated()
    trainer._gradients.forward = _Narrow(trainer.network)
    assert trainer.train(1) > 0
    assert trainer._gradients.micro_batch == 1
    assert torch.cuda.memory_allocated() < before * 1.5 + 2**20
    assert torch.cuda.memory_reserved() < 0.5 * torch.cuda.mem_get_info()[1]


def test_changes_for_which_memory_is_full_are_made_on_the_cpu(
    spec: JobSpec, site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, whole = (_trainer(_plan(spec), site) for _ in range(2))
    stream: BatchStream = trainer.prepare()
    expected = [next(whole.prepare()) for _ in range(4)]
    change = stream._input.change

    def full(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if batch["image"].is_cuda:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return change(batch, generator)

    monkeypatch.setattr(stream._input, "change", full)
    for wanted in expected:
        found = next(stream)
        assert all(values.is_cuda for values in found.values())
        # Noise is drawn where it is added, and interpolation rounds otherwise; the patches are the same.
        assert (found["label"] == wanted["label"]).float().mean() > 0.98
    assert caplog.text.count("batches are changed on the CPU") == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_left_out_spoils_nothing(optimizer: str) -> None:
    # What is used next may hold anything.
    for _ in range(4):
        torch.full((2**20,), float("nan"), device="cuda")
    network = nn.Linear(64, 64).cuda()
    made = build_optimizer(TrainingSpec.model_validate({"optimizer": optimizer}), network)
    scaler = StepScaler("cuda", torch.float32)
    for number in range(3):
        made.zero_grad()
        loss = network(torch.ones(2, 64, device="cuda")).mean() * (float("nan") if number == 0 else 1.0)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(made)
        scaler.step(made)
        scaler.update()
    assert all(torch.isfinite(value).all() for value in network.parameters())


@pytest.mark.parametrize("network", ["unet", "dynunet", "segresnet", "swinunetr"])
def test_two_deterministic_runs_have_the_same_bits(
    spec: JobSpec, site: Path, caplog: pytest.LogCaptureFixture, network: str
) -> None:
    changes = {
        "model": {"network": network, "channels": None},
        "data": {"patch": [64 if network == "swinunetr" else 32] * 3},
    }
    training = {"steps_per_round": 10, "compile": "never", "deterministic": True}
    plan = spec.changed({**changes, "training": training}).plan()
    runs = []
    for _ in range(2):
        trainer = _trainer(plan, site)
        trainer.train(6)
        runs.append(trainer.weights())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert "no deterministic form" not in caplog.text


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False), (2, 8, 12, 10, 6)),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (2, 8, 12, 10)),
        (nn.AvgPool3d(2), (2, 8, 12, 10, 7)),
    ],
)
def test_forms_have_values_and_gradients_of_what_they_replace_and_raise_no_alert(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    network = nn.Sequential(layer)
    assert use_deterministic_forms(network) == 1
    one, other = (torch.randn(shape, device="cuda").requires_grad_() for _ in range(2))
    other.data.copy_(one.data)
    expected = layer(one)
    expected.square().sum().backward()
    make_repeatable(1, True)
    try:
        torch.set_deterministic_debug_mode("error")
        found = network(other)
        found.square().sum().backward()
    finally:
        make_repeatable(1, False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.grad, one.grad)
