"""Tests of transforms and losses that a pack brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oncofed.data.cases import read_cases
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.packs.extensions import extensions_of, find_loss
from oncofed.packs.load import load_pack
from oncofed.packs.pack import make_pack
from oncofed.training import Plan, Trainer
from synthetic import make_package

BLOCKS = """
from oncofed.packs.extensions import register_loss, register_transform


@register_transform("blank")
def blank(batch):
    return {**batch, "image": batch["image"] * 0}


@register_loss("from_one")
def from_one(output, batch):
    assert not batch["image"].any()
    return (output - 1).square().mean()
"""


@pytest.fixture
def digest(tmp_path: Path) -> str:
    pack = make_pack(make_package(tmp_path / "mine", BLOCKS), None)
    load_pack(pack)
    return pack.digest


def _plan(spec: JobSpec, digest: str | None, **training: Any) -> Plan:
    values = spec.plan().model_dump()
    model = {**values["model"], "code": digest}
    return Plan.model_validate({**values, "model": model, "training": {**values["training"], **training}})


def test_a_job_trains_with_them_and_with_a_network_of_oncofeds_own(spec: JobSpec, site: Path, digest: str) -> None:
    assert extensions_of(digest) == {"tasks": [], "transforms": ["blank"], "losses": ["from_one"]}
    plan = _plan(spec, digest, transforms=["blank"], loss="from_one", steps_per_round=40)
    trainer = Trainer(plan, read_cases(site, plan.data.split, plan.seed), "here")
    first = trainer.train(2)
    trainer.train(30)
    assert trainer.train(2) < first / 2


def test_names_that_no_pack_registers_are_reported(spec: JobSpec, digest: str) -> None:
    with pytest.raises(ValueError, match="has no transform 'black'; it has blank"):
        _plan(spec, digest, transforms=["black"])
    with pytest.raises(ValueError, match="has no loss 'blank'; it has from_one"):
        _plan(spec, digest, loss="blank")
    with pytest.raises(ValueError, match="blank comes with a pack"):
        _plan(spec, None, transforms=["blank"])
    with pytest.raises(SpecError, match="it has none"):
        find_loss("0" * 64, "from_one")
