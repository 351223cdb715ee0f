"""Every folder in jobs/ is a valid job.

It has a card, exports without code, and its network fits its patch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oncofed.job.flare import export_job
from oncofed.job.spec import ProfileJobSpec, parse_any_job

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*/"))


@pytest.mark.parametrize("folder", JOBS, ids=lambda f: f.name)
def test_a_job_and_its_card(folder: Path, tmp_path: Path) -> None:
    spec = parse_any_job(folder / "job.yaml")
    assert spec.name == folder.name
    card = (folder / "README.md").read_text()
    classes = spec.profile.classes if isinstance(spec, ProfileJobSpec) else spec.task.classes
    # A finding's figure is called after its target and itself.
    assert all(name.split()[0].rpartition(".")[2] in card for name in classes.values())
    exported = export_job(spec, tmp_path / spec.name)
    assert not [f for f in exported.rglob("*") if f.suffix == ".py"]
    if isinstance(spec, ProfileJobSpec):
        return
    network = spec.plan().build_network().eval()
    task = spec.plan().build_task()
    outputs = task.out_channels
    # A row of the table, where the network sees one beside its image or bag.
    row = [torch.zeros(1, len(spec.data.covariates))] if spec.data.covariates else []
    with torch.no_grad():
        if spec.model.kind == "bag":
            answer = network(torch.zeros(1, 3, task.in_channels), torch.ones(1, 3, dtype=torch.bool), *row)
            assert answer.shape == (1, outputs)
            return
        # Of a patch as large as a GPU takes, shapes are enough; RetinaNet's anchors need values.
        device = torch.device("meta" if spec.model.kind == "dense" else "cpu")
        output = network.to(device)(torch.zeros(1, task.in_channels, *spec.data.patch, device=device), *row)
    if spec.model.kind == "boxes":
        output = output[..., 0]  # of one anchor of many
    assert output.shape == (1, outputs, *(spec.data.patch if spec.model.kind == "dense" else ()))
