"""Noise that sites make together: how much of it is in the sum, and who refuses to take part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.shared_noise import check_shared_noise
from oncofed.client.secure_aggregation import Identity, MaskedUpdates
from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.errors import FederationError, NotEnoughSitesError, SpecError
from oncofed.messages.requests import EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.messages.secure_aggregation import MaskRequest, SecureStep, plan_digest, read_ready
from oncofed.models.weights import WeightLayout, Weights
from oncofed.privacy.noise import SecretRandomness
from oncofed.privacy.policy import LeavesSpec
from oncofed.privacy.secure_aggregation import ProtocolError, Ready, Roster, Rules
from oncofed.privacy.secure_aggregation.checks import check_survivors
from oncofed.privacy.secure_aggregation.messages import Survivors
from oncofed.privacy.secure_aggregation.rules import VerifyKey
from oncofed.rounds.events import Event, Summed
from oncofed.rounds.in_memory import InMemorySites
from oncofed.rounds.job_model import JobModel
from oncofed.rounds.loop import RoundLoop, Server
from oncofed.rounds.run_state import read_run_state
from oncofed.rounds.sums import unverified
from oncofed.settings import SettingError
from oncofed.training import Plan
from oncofed.training.optimizer import StepScaler, build_optimizer
from oncofed.training.patient_draws import PatientDraw
from oncofed.training.patient_gradients import private_gradients
from oncofed.training.shared_noise import shared_noise, site_deviation
from tiny_federation import PLAN, evaluation

_NUMBERS, _RATE, _SIGMA, _CLIP, _SAMPLING = 1500, 0.2, 1.5, 0.5, 0.4
_LAYOUT = WeightLayout({"w": torch.empty(_NUMBERS, device="meta")}, frozenset({"w"}), frozenset({"w"}))
# Patients of each site; each third one has a second case.
_PATIENTS = {"centre": 33, "east": 21, "north": 48, "south": 30, "west": 90}


def _plan(rounds: int = 3, private: Mapping[str, Any] | None = None, **training: Any) -> Plan:
    values: dict[str, Any] = {
        **PLAN.model_dump(),
        "training": {
            "steps_per_round": 1,
            "optimizer": "sgd",
            "momentum": 0.0,
            "learning_rate": _RATE,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            **training,
        },
        "privacy": {
            "secure_aggregation": {"minimum_sites": 5},
            "differential_privacy": {
                "noise": "shared",
                "colluding": 1,
                "lost": 1,
                "noise_multiplier": _SIGMA,
                "delta": 1e-3,
                "sampling": _SAMPLING,
                "clip": _CLIP,
                **(private or {}),
            },
        },
        "rounds": rounds,
    }
    return Plan.model_validate(values)


def _federation(plan: Plan, **more: Any) -> FederationPlan:
    private = plan.privacy.differential_privacy
    assert private
    return FederationPlan.model_validate(
        {
            "rounds": {"number": plan.rounds},
            "secure_aggregation": plan.privacy.secure_aggregation,
            "lost": private.lost,
            **more,
        }
    )


class _Given:
    """Gives each patient the gradient that its batch holds."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.scaler = StepScaler("cpu", torch.float32)
        self._weight = weight

    def compute(self, batch: dict[str, Tensor]) -> Tensor:
        self._weight.grad = batch["gradient"].clone()
        return batch["gradient"].sum()


def _cases(patients: int) -> Cases:
    twice = [f"p{n}" for n in range(patients)] + [f"p{n}" for n in range(0, patients, 3)]
    train = tuple(Case(f"c{n}", patient, Path("image"), Path("label")) for n, patient in enumerate(twice))
    return Cases(train, (), ())


class _Site:
    """A site whose patients pull the weights to points of their own; its noise comes from a key that the test knows."""

    def __init__(self, name: str, folder: Path, plan: Plan, federation: FederationPlan, pull: float = 1.0) -> None:
        self.name, self._plan = name, plan
        self.cases = _cases(_PATIENTS[name])
        self._network = nn.Linear(_NUMBERS, 1, bias=False)
        self._optimizer = build_optimizer(plan.training, self._network)
        given: Any = _Given(self._network.weight)
        gradients = private_gradients(plan, self.cases, given, self._network, None)
        assert gradients
        self.gradients = gradients
        self.points = [pull * torch.randn(_NUMBERS, generator=_seeded(name, n)) for n in range(_PATIENTS[name])]
        self.pull, self.random = pull, SecretRandomness(key_of(name))
        self.fails_at: type[Request] | None = None
        self.norms: list[float] = []
        folder.mkdir(parents=True)
        self.masked = MaskedUpdates(
            federation,
            _LAYOUT,
            job="job",
            plan_digest=plan_digest(plan, federation),
            identity=Identity(site=name, sign=lambda data: b"-", certificates=b"-", verify=unverified),
            leaves=LeavesSpec(),
            folder=folder,
            noise=shared_noise(plan),
        )

    def __call__(self, request: Request) -> Result | Refusal:
        """Do a task."""
        if self.fails_at and isinstance(request, self.fails_at):
            return Refusal("its disk is full")
        try:
            return self._do(request)
        except FederationError as error:
            return Refusal(str(error))

    def _do(self, request: Request) -> Result | Refusal:
        if isinstance(request, SecureStep):
            return self.masked.answer(request)
        if isinstance(request, PrepareRequest):
            counts = {"train": len(self.cases.train), "validation": 6, "test": 6}
            return SiteFacts({**counts, "device": "cpu", "version": oncofed.__version__})
        if isinstance(request, EvaluateRequest):
            return EvaluateResult({"evaluation": evaluation(0.5)})
        assert isinstance(request, TrainRequest)
        result = self.masked.hold(self._train(request), request)
        self.norms.append(read_ready(result.ready, self.name)[1].norm)
        return result

    def _train(self, request: TrainRequest) -> TrainResult:
        start = request.weights["w"].clone()
        with torch.no_grad():
            self._network.weight.copy_(start.view(1, -1))
        stream = self.random.step()
        drawn = stream.draws(len(self.points), _SAMPLING)
        batches: list[Any] = [partial(_batch, start, self.points[n], self.pull) for n in drawn]
        self.gradients.compute(PatientDraw(batches, stream))
        self._optimizer.step()
        delta = self._network.weight.detach().view(-1) - start
        numbers = {"evaluation": evaluation(0.5), "train_s": 1.0}
        return TrainResult(delta={"w": delta}, cases=len(self.cases.train), steps=1, numbers=numbers)


def _batch(start: Tensor, point: Tensor, pull: float) -> dict[str, Tensor]:
    return {"gradient": (start - point if pull else torch.zeros_like(start)).view(1, -1)}


def _seeded(name: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()) * 1000 + number)


def key_of(name: str) -> bytes:
    """Return the key of a site's randomness."""
    return name.encode().ljust(32, b"-")


class _Model(JobModel):
    def layout(self) -> WeightLayout:
        return _LAYOUT

    def initial(self) -> tuple[WeightLayout, Weights]:
        return _LAYOUT, {"w": torch.zeros(_NUMBERS)}


def _sites(folder: Path, plan: Plan, pull: float = 1.0, **more: Any) -> dict[str, _Site]:
    return {name: _Site(name, folder / "sites" / name, plan, _federation(plan, **more), pull) for name in _PATIENTS}


def _run(folder: Path, plan: Plan, sites: Mapping[str, _Site], **more: Any) -> tuple[Tensor, list[Event]]:
    events: list[Event] = []
    transport = InMemorySites(sites)
    loop = RoundLoop(
        plan=plan,
        federation=_federation(plan, **more),
        transport=transport,
        folder=folder / "run",
        server=Server(
            record=events.append,
            sites=transport.names,
            clock=transport.clock,
            is_stopped=bool,
            synchronize=lambda: None,
        ),
        model=_Model(plan),
    )
    try:
        loop.run()
    finally:
        loop.close()
    state = read_run_state(folder / "run")
    assert state
    return state.model["w"], events


def _total(sites: Mapping[str, _Site]) -> int:
    return sum(len(site.cases.train) for site in sites.values())


def test_a_run_is_that_of_all_patients_together(tmp_path: Path) -> None:
    plan = _plan()
    sites = _sites(tmp_path, plan)
    model, _ = _run(tmp_path, plan, sites)
    expected, randomness = torch.zeros(_NUMBERS), {name: SecretRandomness(key_of(name)) for name in sites}
    deviation = _SIGMA * _CLIP / math.sqrt(5 - 1 - 1)
    for _ in range(plan.rounds):
        total = torch.zeros(_NUMBERS, dtype=torch.float64)
        for name, site in sites.items():
            stream = randomness[name].step()
            for number in stream.draws(len(site.points), _SAMPLING):
                gradient = (expected - site.points[number]).double()
                total += gradient * min(1.0, _CLIP / float(gradient.norm()))
            total += deviation * stream.normal(_NUMBERS)
        expected = expected - (_RATE * total / (_SAMPLING * _total(sites))).float()
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(model, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lost", [None, "west"])
def test_there_is_the_whole_noise_whoever_is_lost_and_whoever_takes_its_own_away(
    tmp_path: Path, lost: str | None
) -> None:
    plan = _plan(rounds=3)
    sites = _sites(tmp_path, plan, pull=0.0)
    if lost:
        sites[lost].fails_at = MaskRequest
    model, events = _run(tmp_path, plan, sites)
    sums = [event for event in events if isinstance(event, Summed)]
    assert [event.lost for event in sums] == [[lost] if lost else []] * 3
    there = {name: site for name, site in sites.items() if name != lost}
    noise = model.double() * _SAMPLING * _total(there) / _RATE / math.sqrt(3)
    assert float(noise.std()) == pytest.approx(_SIGMA * _CLIP * math.sqrt(len(there) / 3), rel=0.05)
    own, randomness = torch.zeros(_NUMBERS, dtype=torch.float64), SecretRandomness(key_of("north"))
    for _ in range(3):
        stream = randomness.step()
        stream.draws(_PATIENTS["north"], _SAMPLING)
        own += site_deviation(plan) * stream.normal(_NUMBERS) / math.sqrt(3)
    left = float((noise + own).std())
    assert left == pytest.approx(_SIGMA * _CLIP * math.sqrt((len(there) - 1) / 3), rel=0.05)
    assert left > 0.95 * _SIGMA * _CLIP


def test_what_a_site_declares_rests_on_no_patient(tmp_path: Path) -> None:
    """The length of its update would tell of its patients by its own noise alone, which is less than promised."""
    plan = _plan(rounds=1)
    norms = []
    for pull in (0.0, 1.0):
        sites = _sites(tmp_path / str(pull), plan, pull)
        _run(tmp_path / str(pull), plan, sites)
        norms += [norm for site in sites.values() for norm in site.norms]
    assert len(norms) == 10
    assert len(set(norms)) == 1


def test_without_lost_sites_a_sum_is_of_all_of_the_roster(tmp_path: Path) -> None:
    plan = _plan(private={"lost": 0})
    sites = _sites(tmp_path, plan)
    sites["west"].fails_at = MaskRequest
    with pytest.raises(NotEnoughSitesError, match="has 4 of the 5 sites"):
        _run(tmp_path, plan, sites)


def test_a_site_does_not_confirm_a_sum_that_lacks_more_sites() -> None:
    names = tuple(f"site-{n}" for n in range(8))
    readies = tuple(Ready(name, 1, 1, "ab" * 32, 5, 1, 1.0, bytes(32), b"-") for name in names)
    roster = Roster(1, 1, readies, dict.fromkeys(names, 1 / 8))
    keys = {name: VerifyKey("AB", lambda data, signature: True) for name in names}
    rules = Rules(minimum_sites=8, lost=1)
    check_survivors(Survivors(1, 1, names[:7]), names[0], roster, names, keys, rules)
    # Two thirds of them are enough to lift the masks, but not for the noise.
    with pytest.raises(ProtocolError, match="the sum has 6 sites, expected at least 7"):
        check_survivors(Survivors(1, 1, names[:6]), names[0], roster, names, keys, rules)


def test_a_roster_in_which_a_site_weighs_less_than_its_cases_is_refused(tmp_path: Path) -> None:
    plan, capped = _plan(), {"exchange": {"largest_weight": 1.5}}
    events: list[Event] = []
    with pytest.raises(NotEnoughSitesError):
        _, events = _run(tmp_path, plan, _sites(tmp_path, plan, **capped), **capped)
    assert not any(isinstance(event, Summed) for event in events)


def test_a_roster_of_too_many_cases_for_the_ring_is_refused(tmp_path: Path) -> None:
    few, noise = _plan(learning_rate=_RATE / 30), shared_noise(_plan())
    fine = shared_noise(few)
    assert noise
    assert fine
    # Of noise of so many steps of the ring: 2^10.
    least = _RATE * site_deviation(_plan()) / (_SAMPLING * noise.most_cases)
    assert least * 2**24 == pytest.approx(2**10, rel=0.01)
    sites = _sites(tmp_path, few)
    assert 100 <= fine.most_cases < _total(sites)
    with pytest.raises(NotEnoughSitesError):
        _run(tmp_path, few, sites)


def test_weights_beside_which_the_noise_is_rounded_off_are_refused() -> None:
    noise = shared_noise(_plan())
    assert noise
    noise.require_fine({"w": torch.ones(4)}, {"w"}, 100)
    with pytest.raises(FederationError, match="float32 rounds a step's noise off"):
        noise.require_fine({"w": torch.full((4,), 1e6)}, {"w"}, 100)


@pytest.mark.parametrize(
    ("training", "private", "message"),
    [
        ({"learning_rate": 1e-5}, {}, "expected at least 100: raise it"),
        ({"schedule": "cosine", "warmup_steps": 20, "learning_rate": 1e-3}, {}, "schedule: constant"),
        ({"learning_rate": 1.0}, {"clip": 1000.0}, "expected at most 100, as masked updates hold it"),
    ],
)
def test_what_the_ring_cannot_hold_is_refused(training: dict[str, Any], private: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        shared_noise(_plan(private=private, **training))


@pytest.mark.parametrize("sent", [{"secure_aggregation": None}, {"lost": 0}, {"strategy": "scaffold"}])
def test_a_site_takes_no_part_where_the_server_has_other_masks_or_another_strategy(sent: dict[str, Any]) -> None:
    plan = _plan()
    check_shared_noise(plan.privacy, _federation(plan))
    with pytest.raises(SettingError, match=r"other masks than the server's|found scaffold"):
        check_shared_noise(plan.privacy, _federation(plan, **sent))


def test_a_baseline_makes_all_noise_itself() -> None:
    plan = _plan()
    alone = plan.model_copy(update={"privacy": plan.privacy.with_own_noise()})
    assert site_deviation(alone) == pytest.approx(_SIGMA * _CLIP)
    assert site_deviation(plan) == pytest.approx(_SIGMA * _CLIP / math.sqrt(3))
