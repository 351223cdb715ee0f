"""A hospital's bad day: real servers and sites, killed, hung and poisoned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fault_lab import lab
from oncofed.job.spec import JobSpec
from synthetic import make_site

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.fixture
def three_sites(tmp_path: Path, two_sites: dict[str, Path]) -> dict[str, Path]:
    return {**two_sites, "north": make_site(tmp_path / "north", 6, 3)}


@pytest.mark.timeout(420)
def test_a_run_outlives_every_process_and_ends_with_the_same_bits(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    patient = spec.changed({"rounds": {"number": 5}, "training": {"steps_per_round": 100}})
    models = []
    for name in ("undisturbed", "disturbed"):
        with lab(patient, two_sites, tmp_path / name) as running:
            running.wait(lambda state: state.round >= 1, "the first round begins")
            if name == "disturbed":
                running.kill("site job", "west")
                running.wait(lambda state: state.round >= 2, "the second round begins")
                running.kill("server job")
                running.wait(lambda state: state.round >= 4, "the fourth round begins")
                running.kill("server")
            state = running.wait(lambda state: state.finished is not None, "the run ends")
            assert sorted(state.participation) == [1, 2, 3, 4, 5]
            assert all(sorted(who["in_time"]) == ["east", "west"] for who in state.participation.values())
            models.append(load_file(running.job.fetch() / "models" / "best.safetensors"))
    assert sum(incident["kind"] == "resumed" for incident in state.incidents) == 2
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.timeout(300)
def test_a_hung_site_does_not_hold_the_others_and_a_killed_one_comes_back(
    spec: JobSpec, three_sites: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"rounds": {"number": 6, "quorum": 2, "deadline_s": 8.0}, "training": {"steps_per_round": 100}}
    with lab(spec.changed(changes), three_sites, tmp_path / "lab") as running:
        running.wait(lambda state: state.rounds_s, "the first round is over")
        with running.stopped("site job", "north"):
            state = running.wait(lambda state: len(state.rounds_s) >= 3, "rounds end without the site that hangs")
            assert "north" in state.participation[3]["missing"]
        running.kill("site", "west")
        state = running.wait(lambda state: state.finished is not None, "the run ends")
        came_back = [n for n, who in state.participation.items() if n > 3 and "north" in who["in_time"] + who["late"]]
        assert came_back
        assert sorted(state.finished["test"]) == ["east", "north", "west"]  # type: ignore[index]


@pytest.mark.timeout(300)
def test_bad_updates_are_refused_and_the_round_goes_on(
    spec: JobSpec, three_sites: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"rounds": {"number": 3, "quorum": 1}, "exchange": {"update": "bfloat16"}}
    poisoned = {"west": "nan", "north": "shape"}
    with lab(spec.changed(changes), three_sites, tmp_path / "lab", poisoned) as running:
        state = running.wait(lambda state: state.finished is not None, "the run ends")
        for who in state.participation.values():
            assert (who["in_time"], sorted(who["refused"])) == (["east"], ["north", "west"])
            assert "not finite" in who["refused"]["west"]
            assert "expected" in who["refused"]["north"]
        told = [p for p in running.alliance.kit("west").rglob("*.txt") if "did not take" in p.read_text()]
        assert told or "did not take" in (tmp_path / "lab" / "logs" / "west.txt").read_text()
