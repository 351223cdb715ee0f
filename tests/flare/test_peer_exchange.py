"""Swarm learning: a site averages updates hidden from the server."""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path

import pytest
import torch
from nvflare.apis.shareable import Shareable
from safetensors.torch import load_file, save

from fault_lab import lab, undisturbed
from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import FederationError
from oncofed.flare.peer_exchange import PeerExchange
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import CombineRequest, PeerUpdate
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, TrainResult
from oncofed.models.weights import WeightLayout
from oncofed.rounds.intake import UpdateIntake
from oncofed.rounds.run_state import RunState
from synthetic import make_site

PLAN = FederationPlan.model_validate({"strategy": {"name": "swarm"}})
LIKE = {"w": torch.zeros(2, device="meta"), "count": torch.zeros((), dtype=torch.int64, device="meta")}


def _given(peer: PeerExchange, number: int, **values: float) -> dict[str, PeerUpdate]:
    wanted: dict[str, PeerUpdate] = {}
    for cases, (site, value) in enumerate(values.items(), 1):
        sent = save({"w": torch.full((2,), value), "count": torch.tensor(7)})
        peer._receive("", Shareable({"round": number, "update": sent}), None)  # type: ignore[arg-type]
        wanted[site] = PeerUpdate(hashlib.sha256(sent).hexdigest(), cases)
    return wanted


def _combined(peer: PeerExchange, wanted: dict[str, PeerUpdate], number: int = 1) -> CombineResult:
    return peer.combine(
        CombineRequest(updates=wanted, round=number), WeightLayout(LIKE, frozenset(LIKE), frozenset({"w"}))
    )


def test_the_mean_is_weighted_by_the_servers_case_counts() -> None:
    peer = PeerExchange(PLAN)
    made = _combined(peer, _given(peer, 1, east=1.0, west=4.0))
    assert torch.equal(made.mean["w"], torch.full((2,), 3.0))
    assert made.mean["count"] == 7
    assert (made.cases, made.missing, made.left_out) == (3, (), {})


def test_a_missing_update_is_named_and_the_others_are_kept() -> None:
    peer = PeerExchange(PLAN)
    wanted = _given(peer, 1, east=1.0, west=4.0)
    more = {**wanted, "north": PeerUpdate("0" * 64, 1)}
    assert _combined(peer, more).missing == ["north"]
    assert _combined(peer, wanted).cases == 3
    assert _combined(peer, wanted).missing == ["east", "west"]  # they were released with their round


def test_an_early_update_of_the_next_round_is_kept() -> None:
    peer = PeerExchange(PLAN)
    early = _given(peer, 2, west=2.0)
    _combined(peer, _given(peer, 1, east=1.0))
    assert _combined(peer, early, 2).cases == 1


def test_an_invalid_update_is_left_out_and_reported() -> None:
    peer = PeerExchange(PLAN)
    wanted = _given(peer, 1, east=1.0, west=float("nan"))
    peer._receive("", Shareable({"round": 1, "update": b"junk"}), None)  # type: ignore[arg-type]
    wanted["north"] = PeerUpdate(hashlib.sha256(b"junk").hexdigest(), 5)
    made = _combined(peer, wanted)
    assert made.cases == 1
    assert "not finite" in made.left_out["west"]
    assert made.left_out["north"] == "it sent what is not tensors"
    with pytest.raises(FederationError, match="no update that counts"):
        _combined(peer, _given(peer, 2, west=float("inf")), 2)


def test_a_far_longer_update_is_left_out() -> None:
    peer = PeerExchange(PLAN)
    made = _combined(peer, _given(peer, 1, east=1.0, north=1.1, south=0.9, west=400.0))
    assert list(made.left_out) == ["west"]


def _intake() -> UpdateIntake:
    layout = WeightLayout(LIKE, frozenset(LIKE), frozenset({"w"}))
    cases = {"east": {"train": 2}}
    return UpdateIntake(federation=PLAN, layout=layout, classes=(), cases=lambda: cases, record=lambda event: None)


MEAN = {"w": torch.ones(2), "count": torch.tensor(7)}
MEMORY = RunState({"w": torch.zeros(2), "count": torch.tensor(0)})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (CombineResult(mean=MEAN, cases=9), "9 cases are behind the mean, expected 2"),
        (CombineResult(mean={**MEAN, "w": torch.ones(3)}, cases=2), r"expected \(2,\)"),
        (CombineResult(mean={**MEAN, "w": torch.full((2,), torch.nan)}, cases=2), "not finite"),
        (Refusal("its disk is full"), "its disk is full"),
        (EvaluateResult({}), "its answer is malformed"),
    ],
)
def test_an_invalid_collector_result_is_refused(answer: Result | Refusal, reason: str) -> None:
    with pytest.raises(FederationError, match=reason):
        _intake().combined("west", answer, 1, MEMORY, {"east": 2})


def test_the_server_refuses_a_swarm_sites_update() -> None:
    intake = _intake()
    expected = intake.expected(1, MEMORY.model)
    with pytest.raises(FederationError, match="other tensors"):
        intake._read("east", TrainResult(delta=MEAN, cases=2, steps=1, numbers={}), expected)
    result = TrainResult(delta={}, cases=2, steps=1, numbers={"update": "f" * 64})
    update, numbers = intake._read("east", result, expected)
    assert len(update.delta) == 0
    assert numbers == {"update": "f" * 64}


HEARD = "heard.txt"


def _listening(folder: Path) -> dict[str, dict[str, str]]:
    """Return the environment of a server that eavesdrops.

    It notes for each large message between sites whether it can read it.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        from nvflare.fuel.f3.cellnet.core_cell import CoreCell

        forward = CoreCell._forward

        def listen(cell, endpoint, origin, destination, kind, message):
            sent = bytes(message.payload or b"")
            if len(sent) > 1000 and not (origin + " " + destination).count("server"):
                with open({str(folder / HEARD)!r}, "a") as file:
                    print("read" if b"conv" in sent else "sealed", file=file)
            return forward(cell, endpoint, origin, destination, kind, message)

        CoreCell._forward = listen
        """),
        encoding="utf-8",
    )
    return {"localhost": {"PYTHONPATH": str(folder)}}


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_a_swarm_gives_the_bits_of_fedavg_even_with_killed_collectors(
    spec: JobSpec, two_sites: dict[str, Path], tmp_path: Path
) -> None:
    sites = {**two_sites, "north": make_site(tmp_path / "north", 6, 3)}
    patient = spec.changed({"rounds": {"number": 4}, "training": {"steps_per_round": 60}})
    with undisturbed(patient, sites, tmp_path / "fedavg") as simulated:
        expected = load_file(simulated()[1] / "models" / "best.safetensors")
    patient = patient.changed({"strategy": {"name": "swarm"}})
    with lab(patient, sites, tmp_path / "swarm", environments=_listening(tmp_path / "swarm")) as running:
        for number, site in enumerate(sites, 1):
            running.wait(lambda state, number=number: state.round >= number, f"round {number} begins")
            running.kill("site job", site)
        state = running.wait(lambda state: state.finished is not None, "the run ends")
        model = load_file(running.job.fetch() / "models" / "best.safetensors")
    assert all(who["in_time"] == ["east", "north", "west"] for who in state.participation.values())
    assert all(torch.equal(model[name], expected[name]) for name in expected)
    assert set((tmp_path / "swarm" / HEARD).read_text().split()) == {"sealed"}
