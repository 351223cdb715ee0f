"""Every algorithm gives the recorded bits.

``same_bits.json`` holds digests of the best and the last model and of the algorithm's state, with losses and scores, as
three sites of synthetic volumes made them in FLARE's simulator before the round loop left FLARE's controller. Other
processors may round differently, so a plain trainer's digest is compared first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle.config_item import ComponentLocator
from safetensors.torch import load_file, save

from oncofed.client import in_process
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.client.preparation import check_cases
from oncofed.data.cases import Usable, usable_cases
from oncofed.flare.peer_exchange import PeerExchange
from oncofed.job.spec import JobSpec, parse_job
from oncofed.messages.requests import CombineRequest, EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, Result, SiteFacts, TrainResult
from oncofed.models.weights import digest_of
from oncofed.rounds.events import (
    BEST_MODEL,
    EVENTS_FILE,
    MODELS_FOLDER,
    EventLog,
    EventReader,
    Finished,
    RoundEnded,
    Validated,
)
from oncofed.rounds.in_memory import Delayed, InMemorySites
from oncofed.rounds.loop import RoundLoop, Server
from oncofed.rounds.run_state import read_run_state
from oncofed.training import Plan, Trainer
from synthetic import make_site, write_job
from tiny_federation import Killed, Recorder

_RECORDED = json.loads((Path(__file__).parent / "same_bits.json").read_text())
_NETWORK = {"network": "unet", "channels": [4, 8], "residual_units": 1, "norm": "batch"}


class _Quiet:
    def progress(self, **values: Any) -> None: ...

    def note(self, text: str, level: int) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _what_all_runs_share() -> Iterator[None]:
    """Check each site's cases once, and search MONAI's modules once."""
    found: dict[str, Usable] = {}
    modules: dict[tuple[str, ...], Any] = {}
    find = ComponentLocator._find_classes_or_functions

    def check_once(plan: Plan, context: SiteContext, *others: Any) -> Usable:
        if context.site not in found:
            found[context.site] = check_cases(plan, context, *others)
        return found[context.site]

    def find_once(self: ComponentLocator, names: list[str]) -> Any:
        if tuple(names) not in modules:
            modules[tuple(names)] = find(self, names)
        return modules[tuple(names)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_process, "check_cases", check_once)
        patch.setattr(ComponentLocator, "_find_classes_or_functions", find_once)
        yield


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    cases = {"east": (6, 1), "west": (7, 2), "north": (9, 3)}
    return {name: make_site(folder / name, *numbers) for name, numbers in cases.items()}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    return parse_job(write_job(tmp_path_factory.mktemp("job")))


@pytest.fixture(scope="module", autouse=True)
def _this_machine_rounds_as_the_recording_one(job: JobSpec, sites: dict[str, Path], _one_thread: None) -> None:
    """Skip where a plain trainer has other bits."""
    plan = job.changed({"rounds": {"number": 3}, "model": _NETWORK}).plan()
    cases = usable_cases(sites["east"], plan.data, plan.supervision(), plan.seed, "east").cases
    trainer = Trainer(plan, cases, "east", torch.device("cpu"))
    trainer.load_weights(plan.initial_weights())
    trainer.train(4)
    if _digest(trainer.weights()) != _RECORDED["trainer"]:
        pytest.skip("this processor rounds otherwise than the one that recorded the digests")


class _Site:
    """A site's local training here, with its peer exchange."""

    def __init__(self, spec: JobSpec, name: str, data: Path, folder: Path, peers: dict[str, PeerExchange]) -> None:
        context = SiteContext(site=name, data=data, state=folder)
        self._plan, self._name, self._peers = spec.plan(), name, peers
        self._training = InProcessTraining(
            plan=self._plan, federation=spec.federation(), context=context, reporter=_Quiet()
        )
        peers[name] = PeerExchange(spec.federation())

    def __call__(self, request: Request) -> Result | Refusal | Delayed:
        if isinstance(request, PrepareRequest):
            return SiteFacts({**self._training.prepare(), "dataset": None, "policy": None})
        if isinstance(request, TrainRequest):
            result = self._training.train(request, bool)
            return self._given_to_peer(result, request) if request.collector else result
        if isinstance(request, EvaluateRequest):
            return EvaluateResult(self._training.validate(request, bool).numbers)
        assert isinstance(request, CombineRequest)
        return self._peers[self._name].combine(request, self._plan.layout())

    def _given_to_peer(self, result: TrainResult, request: TrainRequest) -> TrainResult:
        sent = save({name: value.contiguous() for name, value in result.delta.items()})
        digest = self._peers[str(request.collector)]._hold(request.round, sent)
        return TrainResult(
            delta={}, cases=result.cases, steps=result.steps, numbers={**result.numbers, "update": digest}
        )

    def close(self) -> None:
        self._training.close()


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    return digest_of(dict(weights), hashlib.sha256).hexdigest()


def _process(spec: JobSpec, sites: dict[str, Path], folder: Path, kill_after: int | None = None) -> None:
    """Run server and sites as new processes would.

    They may be killed.
    """
    log, peers = EventLog(folder / EVENTS_FILE), dict[str, PeerExchange]()
    running = {name: _Site(spec, name, data, folder / name, peers) for name, data in sites.items()}
    transport = InMemorySites(running)
    loop = RoundLoop(
        plan=spec.plan(),
        federation=spec.federation(),
        transport=transport,
        folder=folder,
        server=Server(record=Recorder(log, kill_after), sites=transport.names, clock=transport.clock),
    )
    try:
        loop.run()
    finally:
        loop.close()
        for site in running.values():
            site.close()
        log.close()


def _assert_recorded(name: str, folder: Path) -> None:
    expected, events = _RECORDED["runs"][name], list(EventReader(folder / EVENTS_FILE).read())
    state = read_run_state(folder)
    assert state
    assert _digest(state.model) == expected["last"]
    assert (_digest(state.strategy) if state.strategy else None) == expected["state"]
    assert _digest(load_file(folder / MODELS_FOLDER / BEST_MODEL)) == expected["best"]
    rounds = {event.round: event.losses for event in events if isinstance(event, RoundEnded)}
    assert list(rounds.values()) == expected["losses"]
    scores = {event.round: event.mean for event in events if isinstance(event, Validated)}
    assert list(scores.values()) == expected["validation"]
    (finished,) = (event for event in events if isinstance(event, Finished))
    assert finished.best_round == expected["best_round"]
    assert {site: scored["mean"] for site, scored in finished.test.items()} == expected["test"]


def _spec(job: JobSpec, name: str) -> JobSpec:
    return job.changed({"rounds": {"number": 3}, "model": _NETWORK, **_RECORDED["runs"][name]["change"]})


@pytest.mark.parametrize("name", _RECORDED["runs"])
def test_an_algorithm_gives_the_recorded_bits(name: str, job: JobSpec, sites: dict[str, Path], tmp_path: Path) -> None:
    _process(_spec(job, name), sites, tmp_path)
    _assert_recorded(name, tmp_path)


@pytest.mark.parametrize("name", ["scaffold int8", "swarm"])
def test_a_killed_run_gives_the_recorded_bits(name: str, job: JobSpec, sites: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _process(_spec(job, name), sites, tmp_path, kill_after=18)
    _process(_spec(job, name), sites, tmp_path)
    _assert_recorded(name, tmp_path)
