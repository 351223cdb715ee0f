"""Tiles that a job's encoder was not made for are noted, and train all the same."""

from __future__ import annotations

from typing import Any

import pytest

from oncofed.data.case import Case
from oncofed.job.checks import encoder_notes
from oncofed.job.spec import JobSpec


def _job(encoder: dict[str, Any], side: int = 64, spacing: float | None = 0.001) -> JobSpec:
    data = {"dataset": "slides", "modality": "microscopy", "channels": ["red", "green", "blue"], "patch": [side, side]}
    return JobSpec.model_validate(
        {
            "name": "slides",
            "title": "Slides",
            "data": {**data, "spacing": spacing and [spacing, spacing]},
            "task": {"type": "slide_classification", "classes": {0: "a", 1: "b"}, "encoder": encoder},
            "model": {"network": "attention_mil"},
        }
    )


@pytest.mark.parametrize(
    ("side", "spacing", "noted"), [(64, 0.001, True), (256, 0.0005, False), (256, None, False), (224, None, True)]
)
def test_a_job_s_and_a_site_s_tiles_are_noted(tmp_path: Any, side: int, spacing: float | None, noted: bool) -> None:
    spec = _job({"network": "uni"}, side, spacing)
    notes = encoder_notes(spec)
    assert bool(notes) == noted
    slide = Case(name="s", patient="p", image=tmp_path / "s.tif", label=0)
    assert spec.plan().build_task().input("none").remarks([slide]) == notes


def test_an_encoder_that_takes_any_tile_is_not_noted() -> None:
    assert not encoder_notes(_job({"network": "colour"}))
    assert not encoder_notes(_job({"network": "lab", "features": 8}))
