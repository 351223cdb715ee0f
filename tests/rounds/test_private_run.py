"""What a run with differential privacy leaves at the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oncofed.privacy.accountant import Event, epsilon
from oncofed.rounds.events import MODELS_FOLDER
from oncofed.rounds.in_memory import InMemorySites
from oncofed.training import Plan
from tiny_federation import PLAN, tiny_loop, tiny_sites


@pytest.mark.parametrize("evaluate_only", [False, True])
def test_the_promise_stands_in_the_provenance_of_what_was_trained(tmp_path: Path, evaluate_only: bool) -> None:
    private = {"noise_multiplier": 1.3, "delta": 1e-4, "sampling": 0.1}
    plan = Plan.model_validate({**PLAN.model_dump(), "privacy": {"differential_privacy": private}})
    sites = InMemorySites(tiny_sites(east=5, west=7))
    tiny_loop(tmp_path, sites, lambda event: None, plan=plan, evaluate_only=evaluate_only).run()
    said = json.loads((tmp_path / MODELS_FOLDER / "provenance.json").read_text())["provenance"]["privacy"]
    if evaluate_only:
        assert said is None
        return
    assert said["epsilon"] == pytest.approx(epsilon([Event(1.3, 0.1, 12)], 1e-4), abs=1e-3)
    assert (said["unit"], said["steps"], said["delta"]) == ("patient", 12, 1e-4)
    assert said["accountant"].startswith("PLD, dp-accounting")
