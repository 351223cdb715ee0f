"""Faults of real servers and sites.

Processes are killed and hang, links are cut, updates are poisoned, and certificates are wrong.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import oncofed
from fault_lab import another_clock, another_version, lab, poison, undisturbed
from oncofed.alliance.session import quiet
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec
from oncofed.rounds.events import Late, Refused, Resumed
from synthetic import make_site

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.fixture
def three_sites(tmp_path: Path, two_sites: dict[str, Path]) -> dict[str, Path]:
    return {**two_sites, "north": make_site(tmp_path / "north", 6, 3)}


@pytest.mark.thorough
def test_a_run_survives_every_killed_process_with_the_same_bits(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    # Large enough for direct connections, with updates of a quarter.
    network = {"model": {"network": "unet", "channels": [40, 80, 160, 160], "residual_units": 2}}
    strategy = {"strategy": {"name": "fedadam"}, "exchange": {"update": "int8"}}
    patient = spec.changed({"rounds": {"number": 6}, "training": {"steps_per_round": 5}, **network, **strategy})
    with (
        undisturbed(patient, two_sites, tmp_path / "undisturbed") as simulated,
        lab(patient, two_sites, tmp_path / "disturbed") as running,
    ):
        running.wait(lambda state: state.round >= 1, "the first round begins")
        running.kill("site job", "west")
        running.wait(lambda state: state.round >= 3, "the third round begins")
        running.kill("server job")
        running.wait(lambda state: state.round >= 4, "the fourth round begins")
        running.kill("site", "east")
        running.wait(lambda state: state.round >= 5, "the fifth round begins")
        running.kill("server")
        state = running.wait(lambda state: state.finished is not None, "the run ends")
        model = load_file(running.job.fetch() / "models" / "best.safetensors")
        usual, folder = simulated()
        expected = load_file(folder / "models" / "best.safetensors")
    said = (tmp_path / "disturbed" / "logs" / "east.txt").read_text()
    assert re.search(r"fetched 17\.0 MB directly", said)
    assert re.search(r"brought 4\.\d MB directly", said)
    assert sorted(state.participation) == [1, 2, 3, 4, 5, 6]
    assert all(sorted(who["in_time"]) == ["east", "west"] for who in state.participation.values())
    assert sum(isinstance(incident, Resumed) for incident in state.incidents) >= 2
    assert state.losses == usual.losses
    assert all(torch.equal(model[name], expected[name]) for name in expected)


@pytest.mark.thorough
def test_a_run_survives_hangs_cut_links_full_disks_and_bad_updates(
    spec: JobSpec, three_sites: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"rounds": {"number": 200, "quorum": 2, "deadline_s": 4.0}, "training": {"steps_per_round": 20}}
    clock = {"east": another_clock(tmp_path / "clock", -600)}
    with lab(spec.changed(changes), three_sites, tmp_path / "lab", environments=clock) as running:
        running.wait(lambda state: state.rounds_s, "the first round is over")
        for link in running.links.values():
            link.lose(0.02)

        # A site that hangs delays nobody past the deadline, and takes part again when it continues.
        with running.stopped("site job", "north"):
            begun = running.look().round
            state = running.wait(
                lambda state: len(state.rounds_s) > begun + 1, "rounds end without the site that hangs"
            )
            assert "north" in state.participation[begun + 1]["missing"]
        since = running.look().round
        running.wait(lambda state: _took_part(state.participation, "north", since), "it takes part again")

        # A cut link.
        running.links["north"].cut()
        running.wait(lambda state: "north" in state.lost, "the site behind it is missed")
        running.links["north"].mend()
        running.wait(lambda state: "north" not in state.lost, "it is back")
        since = running.look().round
        running.wait(lambda state: _took_part(state.participation, "north", since), "it takes part again")

        # A disk so full that FLARE cannot write its audit, without which it executes no task.
        with running.full_disk("site job", "east"):
            running.wait(lambda state: _refusals(state, "east"), "the full disk is told")
        since = running.look().round
        running.wait(lambda state: _took_part(state.participation, "east", since + 1), "it takes part again")

        # The engineer stops the job.
        with quiet():
            running.alliance.session().abort_job(running.job.id)

        # Bad updates are refused, and the round goes on.
        poison(running.alliance.kit("west"), "nan")
        poison(running.alliance.kit("north"), "shape")
        running.submit(spec.changed({"rounds": {"number": 3}, "exchange": {"update": "bfloat16"}}))
        state = running.wait(lambda state: state.finished is not None, "the next job ends")
        assert sorted(state.finished.test) == ["east", "north", "west"]  # type: ignore[union-attr]
        assert sorted(state.participation) == [1, 2, 3]
        for who in state.participation.values():
            assert (who["in_time"], sorted(who["refused"])) == (["east"], ["north", "west"])
            assert "not finite" in who["refused"]["west"]
            assert "expected" in who["refused"]["north"]
        told = [p for p in running.alliance.kit("west").rglob("*.txt") if "did not take" in p.read_text()]
        assert told or "did not take" in (tmp_path / "lab" / "logs" / "west.txt").read_text()


@pytest.mark.thorough
def test_another_version_is_refused_and_a_twin_changes_nothing(
    spec: JobSpec, three_sites: dict[str, Path], tmp_path: Path
) -> None:
    other = {"north": another_version(tmp_path / "other", "0.0.1")}
    patient = spec.changed({"rounds": {"number": 3, "quorum": 2}, "training": {"steps_per_round": 120}})
    with lab(patient, three_sites, tmp_path / "lab", environments=other) as running:
        running.wait(lambda state: state.ready_s is not None, "the sites are ready")
        with running.twin("west"):
            state = running.wait(lambda state: state.finished is not None, "the run ends")
            assert all(who["in_time"] == ["east", "west"] for who in state.participation.values())
            assert f"it runs oncofed 0.0.1, the server {oncofed.__version__}" in state.lost["north"]


@pytest.mark.thorough
def test_a_hanging_site_or_collector_delays_nobody_past_the_deadline(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    rounds = {"number": 3, "deadline_s": 8.0}
    cyclic = spec.changed({"rounds": rounds, "strategy": {"name": "cyclic"}})
    with lab(cyclic, two_sites, tmp_path / "lab", {"west": "hang"}) as running:
        state = running.wait(lambda state: state.finished is not None, "the run ends")
        assert sorted(state.participation) == [1, 2, 3]
        assert all((who["in_time"], who["missing"]) == (["east"], ["west"]) for who in state.participation.values())
        assert any(isinstance(incident, Late) for incident in state.incidents)

        # By the job's seed the hanging site is the fifth round's collector.
        # Its first round includes what any job's first step takes on a busy machine.
        swarm = {"rounds": {"number": 5, "quorum": 1, "deadline_s": 10.0}, "strategy": {"name": "swarm"}}
        running.submit(spec.changed(swarm))
        state = running.wait(lambda state: state.finished is not None, "the next run ends")
        assert sorted(state.participation) == [1, 2, 3, 4, 5]
        assert all("east" in who["in_time"] for who in state.participation.values())
        refused = _refusals(state)
        assert "it did not put the updates together in time" in refused


def _took_part(participation: dict[int, dict[str, object]], site: str, since: int) -> bool:
    return any(site in who["in_time"] + who["late"] for number, who in participation.items() if number >= since)  # type: ignore[operator]


def _refusals(state: RunProgress, site: str | None = None) -> list[str]:
    refused = [incident for incident in state.incidents if isinstance(incident, Refused)]
    return [incident.reason for incident in refused if site in (None, incident.site)]
