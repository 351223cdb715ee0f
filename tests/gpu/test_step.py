"""A training step on a GPU: compiled, as CUDA graphs, corrected, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.algorithms.feddyn import DynamicRegulariser
from oncofed.algorithms.fedprox import Proximal
from oncofed.algorithms.scaffold import ControlVariates
from oncofed.data.cases import read_cases
from oncofed.job.spec import JobSpec
from oncofed.models.weights import weights_of
from oncofed.tasks.losses import dice_ce
from oncofed.training import Plan, Trainer
from oncofed.training.checkpoint import read_checkpoint, without_prefix
from oncofed.training.compiling import CACHE_VARIABLE, Form, can_compile

pytestmark = pytest.mark.gpu

DYNUNET = {"network": "dynunet", "channels": [8, 16, 32], "deep_supervision": 1}


def _plan(spec: JobSpec, **training: object) -> Plan:
    settings = {"steps_per_round": 40, "precision": "float32", **training}
    return spec.changed({"model": DYNUNET, "training": settings}).plan()


def _trainer(plan: Plan, site: Path, checkpoint: Path | None = None) -> Trainer:
    return Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1", checkpoint=checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["compiled", "replayed"])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_each_form_of_a_step_learns_the_same(
    spec: JobSpec,
    site: Path,
    tmp_path: Path,
    form: Form,
    micro_batch: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    why = can_compile()
    if why:
        pytest.skip(why)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    plan = _plan(spec, micro_batch=micro_batch)
    expected = [_trainer(plan, site).train(8)]
    trainer = _trainer(plan, site)
    trainer._gradients.compiling.form = form
    trainer._gradients.use(form)
    assert [trainer.train(8)] == pytest.approx(expected, rel=1e-3)
    assert "failed" not in caplog.text
    assert trainer._gradients.compiling.form == ("compiled" if micro_batch else form)
    assert any(tmp_path.iterdir())


def test_a_checkpoint_is_the_state_when_it_was_begun(spec: JobSpec, site: Path, tmp_path: Path) -> None:
    trainer = _trainer(_plan(spec), site, tmp_path / "checkpoint")
    trainer.train(2, wait=False)
    expected = trainer.weights()
    with torch.no_grad():
        for value in weights_of(trainer.network).values():
            value.zero_()
    trainer.settle()
    found = without_prefix(read_checkpoint(tmp_path / "checkpoint")[0], "network")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert trainer._resumption.writer
    assert trainer._resumption.writer._memory.is_pinned()


@pytest.mark.parametrize("name", ["fedprox", "ditto", "scaffold", "feddyn"])
def test_a_corrected_step_does_not_wait_for_the_host(spec: JobSpec, site: Path, name: str) -> None:
    trainer = _trainer(_plan(spec), site)
    start = trainer.weights()
    zeros = {n: torch.zeros_like(value) for n, value in start.items()}
    correction = {
        "fedprox": lambda: Proximal(0.1),
        "ditto": lambda: Proximal(0.1),
        "scaffold": ControlVariates,
        "feddyn": lambda: DynamicRegulariser(0.1),
    }[name]()
    correction.restore(zeros)
    correction.start(trainer.network, {f"control.{n}": value for n, value in zeros.items()})
    if isinstance(correction, Proximal) and name == "ditto":
        correction.hold_near(start)
    trainer.train(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        correction.apply(trainer.network)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_loss_is_the_cpus_in_whatever_layout() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 24, 24, 24, generator=generator)
    label = torch.randint(0, 6, (2, 1, 24, 24, 24), generator=generator, dtype=torch.uint8)
    there = logits.clone().requires_grad_()
    expected = dice_ce(there, label, 5)
    expected.backward()
    torch.use_deterministic_algorithms(True)
    try:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            here = logits.cuda().to(memory_format=layout).requires_grad_()
            loss = dice_ce(here, label.cuda(), 5)
            loss.backward()
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
            torch.testing.assert_close(here.grad.cpu().contiguous(), there.grad, rtol=1e-4, atol=1e-9)  # type: ignore[union-attr]
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_network_with_batch_norm_is_trained_with_channels_last(spec: JobSpec, site: Path) -> None:
    plan = spec.changed({"model": {"norm": "batch"}, "training": {"steps_per_round": 5}}).plan()
    trainer = _trainer(plan, site)
    assert trainer._gradients.layout is torch.channels_last_3d
    assert trainer.train(2) > 0
    assert _trainer(_plan(spec), site)._gradients.layout is torch.contiguous_format
