"""Checkpoints written by a thread: content, order, errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from oncofed.data.cases import read_cases
from oncofed.job.spec import JobSpec
from oncofed.training import Plan, Trainer, writing
from oncofed.training.checkpoint import Tensors, previous_of, read_checkpoint, write_checkpoint
from oncofed.training.writing import CheckpointWriter

SCRIPT = """
import sys
from pathlib import Path
from oncofed.lean_imports import lean_imports
with lean_imports():
    from oncofed.data.cases import read_cases
    from oncofed.training import Plan, Trainer

plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
cases = read_cases(Path(sys.argv[2]), plan.data.split, plan.seed)
trainer = Trainer(plan, cases, "site-1", checkpoint=Path(sys.argv[3]))
trainer._resumption.writer._beside = True  # as on a GPU
trainer.prepare()
while trainer.steps_done < 40:
    trainer.train(4)
    print(trainer.steps_done, flush=True)
"""


def _tensors() -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(4, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last),
        "half": torch.randn(7, generator=generator).bfloat16(),
        "step": torch.tensor(3.0),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.empty(0),
    }


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "checkpoint"]


class _Slowly:
    """Writes when it is let, and says what."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.steps: list[int] = []

    def __call__(self, path: Path, tensors: Tensors, facts: dict[str, int]) -> None:
        assert self.let.wait(300)
        self.steps.append(facts["steps"])
        write_checkpoint(path, tensors, facts)


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_written_reads_the_same(tmp_path: Path, beside: bool) -> None:
    path, tensors = tmp_path / "checkpoint.safetensors", _tensors()
    writer = CheckpointWriter(path, beside)
    for steps in (1, 2):
        writer.write(tensors, {"steps": steps})
        assert writer.writing is beside
        writer.wait()
        found, facts = read_checkpoint(path)
        assert facts == {"steps": steps}
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        assert all(found[name].dtype == value.dtype for name, value in tensors.items())
    assert read_checkpoint(previous_of(path))[1] == {"steps": 1}
    assert _threads() == []


def test_a_checkpoint_holds_the_state_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly = _Slowly()
    monkeypatch.setattr(writing, "write_checkpoint", slowly)
    tensors, expected = _tensors(), _tensors()
    writer = CheckpointWriter(tmp_path / "checkpoint", True)
    writer.write(tensors, {"steps": 1})
    for value in tensors.values():
        value.zero_()
    slowly.let.set()
    writer.wait()
    found, _ = read_checkpoint(tmp_path / "checkpoint")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_later_one_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowly = _Slowly()
    monkeypatch.setattr(writing, "write_checkpoint", slowly)
    writer = CheckpointWriter(tmp_path / "checkpoint", True)
    writer.write(_tensors(), {"steps": 1})
    threading.Timer(0.2, slowly.let.set).start()
    writer.write(_tensors(), {"steps": 2})
    writer.wait()
    assert slowly.steps == [1, 2]
    assert read_checkpoint(tmp_path / "checkpoint")[1] == {"steps": 2}


def test_a_failure_is_reported_once_and_the_old_state_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "checkpoint"
    path.parent.mkdir()
    writer = CheckpointWriter(path, True)
    writer.write(_tensors(), {"steps": 1})
    writer.wait()
    path.parent.rename(tmp_path / "away")
    writer.write(_tensors(), {"steps": 2})
    with pytest.raises(OSError, match="No such file"):
        writer.wait()
    writer.wait()
    (tmp_path / "away").rename(path.parent)
    assert read_checkpoint(path)[1] == {"steps": 1}


@pytest.fixture
def plan(spec: JobSpec) -> Plan:
    return spec.changed({"training": {"steps_per_round": 40}, "rounds": {"number": 1}}).plan()


def _trainer(plan: Plan, site: Path, checkpoint: Path | None = None) -> Trainer:
    trainer = Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1", checkpoint=checkpoint)
    if trainer._resumption.writer:
        trainer._resumption.writer._beside = True  # as on a GPU
    return trainer


def test_a_trainer_reports_unwritten_checkpoints_and_can_wait(
    plan: Plan, site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    trainer = _trainer(plan, site, folder / "checkpoint")
    trainer.train(2, wait=False)
    assert trainer._resumption.writer
    assert trainer._resumption.writer.writing
    trainer.settle()
    assert not trainer._resumption.writer.writing
    assert trainer.not_kept is None
    assert read_checkpoint(folder / "checkpoint")[1]["steps_done"] == 2
    folder.rename(tmp_path / "away")
    trainer.train(1)
    assert trainer.not_kept == "No such file or directory"
    assert "could not be kept (No such file or directory)" in caplog.text
    folder.mkdir()
    trainer.train(1)
    assert trainer.not_kept is None


def test_a_failed_round_leaves_no_thread(plan: Plan, site: Path, tmp_path: Path) -> None:
    trainer = _trainer(plan, site, tmp_path / "checkpoint")
    trainer.train(1, wait=False)

    def broken(done: int, loss: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(2, on_step=broken)
    assert _threads() == []


@pytest.mark.slow
def test_a_process_killed_while_writing_resumes_to_the_same_bits(plan: Plan, site: Path, tmp_path: Path) -> None:
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
