"""A site's part in a job with differential privacy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from oncofed.algorithms.plan import FederationPlan
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.client.private_steps import PrivateSteps, steps_taken
from oncofed.errors import PolicyError, TrainingError
from oncofed.job.spec import JobSpec, read_job
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import SiteFacts, TrainResult
from oncofed.privacy.accountant import Event
from outbound_results import COUNTS, NUMBERS, delta_of, policy_of
from synthetic import JOB, make_site, write_job

_JOB = JOB.replace("batch_size: 2", "optimizer: sgd, momentum: 0.9, schedule: constant")
_SECTION = "privacy: {differential_privacy: {noise_multiplier: 1, delta: 1.0e-3, sampling: 0.2, patches: 2}}\n"


class _Told:
    """Keeps the progress that would leave."""

    def __init__(self) -> None:
        self.values: list[dict[str, object]] = []

    def progress(self, **values: object) -> None:
        """Keep it."""
        self.values.append(values)

    def note(self, text: str, level: int) -> None:
        """Drop a line."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of 32 patients, of whom 21 are trained on."""
    return make_site(tmp_path_factory.mktemp("data") / "east", 32)


@pytest.fixture
def private(tmp_path: Path) -> JobSpec:
    """The job, with differential privacy."""
    return read_job(write_job(tmp_path / "job", _JOB + _SECTION))


@pytest.fixture
def begin(private: JobSpec, data: Path, tmp_path: Path) -> Any:
    """Return a function that begins the site's training."""

    def begun(told: _Told | None = None, spec: JobSpec = private, **more: Any) -> InProcessTraining:
        context = SiteContext(site="east", data=more.pop("data", data), state=tmp_path / "state", **more)
        reporter, federation = told or _Told(), FederationPlan()
        return InProcessTraining(plan=spec.plan(), federation=federation, context=context, reporter=reporter)

    return begun


def _go_on() -> bool:
    return False


def test_nothing_of_training_patients_leaves_without_noise(private: JobSpec, begin: Any) -> None:
    told = _Told()
    training = begin(told)
    facts = training.prepare()
    result: TrainResult = training.train(TrainRequest(weights=private.plan().initial_weights(), round=1), _go_on)
    training.close()
    assert facts["profile"] == {}
    assert facts["train"] == 21
    assert any(values.get("phase") == "training" for values in told.values)
    assert "loss" not in json.dumps([told.values, result.numbers, facts])
    assert any(value.abs().sum() > 0 for value in result.delta.values())


def test_an_answer_is_given_again_and_no_second_one_beyond_the_plan(private: JobSpec, begin: Any) -> None:
    training = begin()
    training.prepare()
    weights = private.plan().initial_weights()

    def train(number: int, repeat: int = 0) -> TrainResult:
        result: TrainResult = training.train(TrainRequest(weights=weights, round=number, repeat=repeat), _go_on)
        return result

    first, again = train(1), train(1)
    assert all(torch.equal(value, again.delta[name]) for name, value in first.delta.items())
    train(2)
    with pytest.raises(PolicyError, match=r"8 of the 8 steps that its privacy was planned for are taken: 4 more"):
        train(2, repeat=1)
    training.close()
    restarted = begin()
    restarted.prepare()
    with pytest.raises(PolicyError, match="8 of the 8 steps"):
        restarted.train(TrainRequest(weights=weights, round=2, repeat=2), _go_on)
    restarted.close()


def test_an_update_that_could_not_be_kept_stays(
    private: JobSpec, begin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = begin()
    training.prepare()
    request = TrainRequest(weights=private.plan().initial_weights(), round=1)
    with pytest.raises(TrainingError, match=r"the update stays here, as it is not kept \(the job is stopped\)"):
        training.train(request, lambda: True)
    monkeypatch.setattr(training, "_keep", lambda result: "No space left on device")
    with pytest.raises(TrainingError, match=r"not kept \(No space left"):
        training.train(request, _go_on)
    monkeypatch.undo()
    training.train(request, _go_on)
    training.close()
    assert json.loads((tmp_path / "state" / "private_steps.json").read_text()) == {"taken": 4, "open": None}


def test_a_job_is_charged_once_before_its_first_step(private: JobSpec, begin: Any, tmp_path: Path) -> None:
    charges: list[tuple[Event, float, tuple[str, ...]]] = []

    def note(*charge: Any) -> bool:
        charges.append(charge)
        return False

    training = begin(charge=note, counts=tmp_path / "counts")
    training.prepare()
    assert not charges, "a job that only scores a model costs nothing"
    weights = private.plan().initial_weights()
    for number in (1, 2):
        training.train(TrainRequest(weights=weights, round=number), _go_on)
    training.close()
    ((event, delta, patients),) = charges
    assert (event, delta, len(patients)) == (Event(1.0, 0.2, 8), 1e-3, 21)
    assert steps_taken(tmp_path / "counts") == 8, "the count outlives the job's state"
    assert steps_taken(tmp_path / "state") is None


def test_a_spent_budget_ends_the_job_at_the_site(private: JobSpec, begin: Any, tmp_path: Path) -> None:
    def charge(event: Event, delta: float, patients: tuple[str, ...]) -> bool:
        raise PolicyError("the budget of some of its patients is spent")

    training = begin(charge=charge)
    training.prepare()
    request = TrainRequest(weights=private.plan().initial_weights(), round=1)
    with pytest.raises(PolicyError, match="is spent"):
        training.train(request, _go_on)
    training.close()
    assert not (tmp_path / "state" / "private_steps.json").exists()


def test_too_few_patients_are_refused(begin: Any, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="too few training patients for differential privacy: expected at least 20"):
        begin(data=make_site(tmp_path / "few", 12)).prepare()


def test_a_delta_of_one_patient_is_refused(private: JobSpec, begin: Any) -> None:
    section = private.privacy.model_dump()
    section["differential_privacy"]["delta"] = 0.048
    with pytest.raises(PolicyError, match=r"delta is 0\.048, expected less than one in the number"):
        begin(spec=private.changed({"privacy": section})).prepare()


def test_steps_of_a_turn_that_never_ended_count_once(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    PrivateSteps(tmp_path / "job", 10).begin("a", 5)
    killed = PrivateSteps(tmp_path / "job", 10)
    killed.begin("a", 5)
    killed.end()
    killed.begin("b", 5)
    with pytest.raises(PolicyError, match="10 of the 10 steps"):
        killed.begin("c", 5)
    assert (tmp_path / "job" / "private_steps.json").stat().st_mode & 0o777 == 0o600


def test_a_lost_count_gives_no_second_release(tmp_path: Path) -> None:
    charged: list[int] = []

    def charge() -> bool:
        charged.append(8)
        return len(charged) > 1

    for name in ("job", "emptied"):
        (tmp_path / name).mkdir()
    PrivateSteps(tmp_path / "job", 8, charge).begin("a", 4)
    PrivateSteps(tmp_path / "job", 8, charge).begin("b", 4)
    with pytest.raises(PolicyError, match="how many of its steps left is not known"):
        PrivateSteps(tmp_path / "emptied", 8, charge).begin("c", 4)


@pytest.mark.attack(
    "a changed job process of a private job sends its loss", "outbound filter, by the job's plan", "the site's log"
)
def test_the_filter_holds_back_what_has_no_noise(private: JobSpec) -> None:
    policy = policy_of(private)
    update = TrainResult(delta=delta_of(private), cases=9, steps=4, numbers=NUMBERS)
    with pytest.raises(PolicyError, match="a loss of training patients without noise"):
        policy.check(update, 1000)
    numbers = {name: value for name, value in NUMBERS.items() if name != "loss"}
    policy.check(TrainResult(delta=delta_of(private), cases=9, steps=4, numbers=numbers), 1000)
    profile = {"intensity": {"patients": 9, "counts": [9] + [0] * 63}}
    with pytest.raises(PolicyError, match="figures of training patients without noise"):
        policy.check(SiteFacts({**COUNTS, "profile": profile}), 1000)
