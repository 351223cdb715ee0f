"""Wrong usage of ``oncofed job tune`` is told before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from commands import Outcome
from synthetic import JOB, write_job

_NETWORK, _PATCH = "{network: unet, channels: [4, 8], residual_units: 1}", "patch: [16, 16, 16]"
_ADAPTED = "{network: swinunetr, arguments: {feature_size: 12}, adapter: {rank: 2}}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--over", "learning_rat", "--site", "east=nowhere"), "is training.learning_rate meant?"),
        (("--over", "learning_rate"), "expected either --site NAME=DATASET, once for each site, or --kit KIT"),
        (
            ("--over", "learning_rate", "--site", "east=nowhere", "--model", "no.safetensors"),
            "expected a file of weights",
        ),
        (("--over", "strategy.mu", "--site", "east=nowhere"), "is no setting of the job's strategy, fedavg"),
    ],
)
def test_wrong_usage_is_explained(
    run: Callable[..., Outcome], job: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run("job", "tune", job, "--budget", "2", *arguments, "--out", tmp_path / "found")
    assert (done.status, said in done.text) == (2, True), done.text
    assert not (tmp_path / "found").exists()


def test_adapters_without_a_model_are_refused_before_any_trial(run: Callable[..., Outcome], tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", JOB.replace(_NETWORK, _ADAPTED).replace(_PATCH, "patch: [32, 32, 32]"))
    words = ("job", "tune", job, "--budget", "2", "--over", "learning_rate", "--site", "east=nowhere")
    done = run(*words, "--out", tmp_path / "found")
    assert (done.status, "expected --model FILE" in " ".join(done.text.split())) == (2, True), done.text
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    done = run(*words, "--out", tmp_path / "found", "--model", tmp_path / "other.safetensors")
    assert (done.status, "of the network's" in " ".join(done.text.split())) == (2, True), done.text
    assert not (tmp_path / "found").exists()
