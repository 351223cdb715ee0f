"""Outcomes by the volumes of masks: as the law says, the same by the same seed, and of masks alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from oncofed.data.brain_outcomes import Law
from oncofed.data.case import case_of
from oncofed.data.hippocampus_outcomes import LAW, log_hazard, state_outcomes, volume_ml
from oncofed.data.manifest import read_manifest
from synthetic import make_site


def test_sites_state_outcomes_of_the_law(tmp_path: Path) -> None:
    folders = [make_site(tmp_path / name / "east", 5) for name in ("one", "other", "drawn")]
    bare = json.loads((folders[0] / "dataset.json").read_text())
    del bare["training"][4]["label"]
    for folder in folders:
        (folder / "dataset.json").write_text(json.dumps(bare))
    # No event comes within the follow-up where the hazard is next to nothing.
    for folder, law in zip(folders, (LAW, LAW, Law(rate=1e-9, per_size=0.0)), strict=True):
        state_outcomes({"east": folder}, 3, law)
    one, other, drawn = map(read_manifest, folders)
    assert one.training == other.training
    assert one.targets["survival"].unit == "months"
    *masked, without = one.training
    assert not without.targets
    assert not without.tags
    for entry in masked:
        millilitres = volume_ml(case_of(folders[0], one, entry))
        assert float(entry.tags["volume_ml"]) == pytest.approx(millilitres, abs=1e-4)
        assert float(entry.tags["log_hazard"]) == pytest.approx(log_hazard(millilitres), abs=1e-4)
        assert 0 < entry.targets["survival"].time <= LAW.longest
    assert not any(entry.targets["survival"].event for entry in drawn.training[:4])


def test_the_smaller_the_structure_the_larger_the_hazard() -> None:
    assert log_hazard(3.3) == pytest.approx(math.log(0.02))
    assert log_hazard(3.3 - 0.43) - log_hazard(3.3) == pytest.approx(1.2)
