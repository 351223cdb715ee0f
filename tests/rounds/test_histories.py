"""Each update counts once, whatever happens to sites and server."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from oncofed.algorithms import Update
from oncofed.algorithms.base import Algorithm
from oncofed.errors import FederationError
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Refusal, Result, TrainResult
from oncofed.models.weights import Weights
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, EventLog, EventReader, Finished, RoundEnded
from oncofed.rounds.in_memory import Delayed, InMemorySites
from oncofed.rounds.run_state import read_run_state
from tiny_federation import WEIGHTS, Killed, Recorder, TinySite, tiny_loop, trained_delta

SITES = {"a": 3, "b": 5, "c": 4}
_SETTINGS: dict[str, dict[str, Any]] = {
    "quorum": {"rounds": {"number": 4, "quorum": 1, "deadline_s": 20.0, "return_s": 5.0}},
    "drop": {"rounds": {"number": 4, "quorum": 2, "deadline_s": 20.0, "late": "drop", "return_s": 5.0}},
    "all": {"rounds": {"number": 3, "return_s": 60.0}},
    "drawn": {"rounds": {"number": 4, "sites_per_round": 2, "quorum": 1, "deadline_s": 20.0}},
    "buffer": {"rounds": {"number": 4, "return_s": 30.0}, "strategy": {"name": "fedbuff", "buffer": 2}},
}


@dataclass(frozen=True)
class Deed:
    """A site's training: it takes seconds, or is refused."""

    seconds: float = 0.0
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Happening:
    """An event of a site: "lose", "come back" or "revoke".

    It happens at a time of the simulated clock.
    """

    at: float
    site: str
    kind: str


SECONDS = st.sampled_from([0.0, 1.0, 5.0, 15.0, 30.0, 45.0])
REFUSALS = st.sampled_from([Refusal("it failed"), Refusal("its disk is full", may_pass=True)])
DEEDS = st.builds(Deed, SECONDS, st.none() | st.none() | REFUSALS)
HAPPENINGS = st.builds(
    Happening, st.integers(0, 60), st.sampled_from(sorted(SITES)), st.sampled_from(["lose", "come back", "revoke"])
)


@dataclass
class _World:
    """State that outlives the server's processes.

    Attributes:
        folder: of the server.
        rules: of the job.
        deeds: of each site, consumed one by one.
        happenings: of each process.
        models: global model after each round, from 0; for a repeated round the last one.
        revoked: sites.
        counted: serial numbers of the updates that were aggregated.
        serials: of updates; they travel as ``steps``.
        rounds: numbers of the rounds that the present process is going to end.
        sites_of: sites whose updates were aggregated, by round; for a repeated round each time.
    """

    folder: Path
    rules: dict[str, Any]
    deeds: dict[str, list[Deed]]
    happenings: Sequence[Happening] = ()
    models: dict[int, Weights] = field(default_factory=lambda: {0: dict(WEIGHTS)})
    revoked: set[str] = field(default_factory=set)
    counted: list[int] = field(default_factory=list)
    serials: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    rounds: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    sites_of: dict[int, list[set[str]]] = field(default_factory=dict)

    def process(self, kill_after: int | None = None, state_is_written: bool = True) -> None:
        """Run the job in a new process of the server.

        Raises:
            Killed: after this many events.
            FederationError: too few sites are left.
        """
        state = read_run_state(self.folder)
        self.rounds = itertools.count(state.round + 1 if state else 1)
        if state:
            assert all(torch.equal(state.model[name], value) for name, value in self.models[state.round].items())
        sites = InMemorySites({name: self._site(TinySite(name, SITES[name])) for name in SITES}, self._happen)
        self._sites = sites
        log = EventLog(self.folder / EVENTS_FILE)
        loop = tiny_loop(
            self.folder,
            sites,
            Recorder(log, kill_after),
            settings=self.rules,
            synchronize=lambda: sites.ban(frozenset(self.revoked)),
        )
        if not state_is_written:
            loop._store._write_state = lambda state: None  # type: ignore[method-assign]
        try:
            loop.run()
        finally:
            loop.close()
            log.close()

    def _happen(self, sites: InMemorySites) -> None:
        for happening in self.happenings:
            if sites.now - 0.5 < happening.at <= sites.now and happening.site in sites.known():
                if happening.kind == "revoke":
                    self.revoked.add(happening.site)
                elif happening.kind == "lose":
                    sites.lose(happening.site, "its process ended")
                else:
                    sites.come_back(happening.site)

    def _site(self, site: TinySite) -> Any:
        def work(request: Request) -> Result | Refusal | Delayed:
            result = site(request)
            if not isinstance(request, TrainRequest):
                return result
            deeds = self.deeds.get(site.name)
            deed = deeds.pop(0) if deeds else Deed()
            if deed.refusal:
                return Delayed(deed.refusal, deed.seconds)
            assert isinstance(result, TrainResult)
            return Delayed(replace(result, steps=next(self.serials)), deed.seconds)

        return work

    def check(self, updates: Sequence[Update]) -> int:
        """Check a round's updates; return the round's number."""
        number = next(self.rounds)
        self.counted.extend(update.steps for update in updates)
        for update in updates:
            assert update.site not in self._sites.banned, "none of a revoked site"
            base = self.models[number - 1 - update.staleness]
            expected = trained_delta(update.site, base)
            assert all(torch.equal(update.delta[name], value) for name, value in expected.items())
            assert update.cases == SITES[update.site]
            assert update.discount == pytest.approx((1 + update.staleness) ** -0.5)
        in_time = [update.site for update in updates if not update.staleness]
        if "strategy" not in self.rules:
            assert len(in_time) == len(set(in_time)), "a site counts once"
        return number

    def check_record(self) -> None:
        """Check the record of what counted in each round."""
        events = list(EventReader(self.folder / EVENTS_FILE).read())
        assert len(self.counted) == len(set(self.counted)), "no update counts twice"
        for event in events:
            if isinstance(event, RoundEnded):
                said = event.participation or {}
                assert set(said["in_time"]) | set(said["late"]) in self.sites_of[event.round]
        finished = [event for event in events if isinstance(event, Finished)]
        state = read_run_state(self.folder)
        if state:
            assert all(torch.equal(state.model[name], value) for name, value in self.models[state.round].items())
        if finished:
            best = load_file(self.folder / MODELS_FOLDER / BEST_MODEL)
            expected = self.models[finished[-1].best_round]
            assert all(torch.equal(best[name], value) for name, value in expected.items())


@contextlib.contextmanager
def _watched(world: _World) -> Iterator[None]:
    """Check a run's aggregations against double precision."""
    aggregate = Algorithm.aggregate

    def checked(self: Algorithm[Any], model: Weights, updates: Sequence[Update], sites: int) -> Weights:
        number = world.check(updates)
        total = sum(update.weight for update in updates)
        mean = {
            name: model[name].double() + sum(u.delta[name].double() * (u.weight / total) for u in updates)
            for name in ("w", "mean")
        }
        moved = aggregate(self, model, updates, sites)
        for name, value in mean.items():
            torch.testing.assert_close(moved[name], value.float())
        assert torch.equal(moved["fixed"], WEIGHTS["fixed"])
        world.models[number] = {name: value.clone() for name, value in moved.items()}
        world.sites_of.setdefault(number, []).append({update.site for update in updates})
        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Algorithm, "aggregate", checked)
        yield


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(_SETTINGS)),
    deeds=st.fixed_dictionaries({site: st.lists(DEEDS, max_size=5) for site in SITES}),
    happenings=st.lists(HAPPENINGS, max_size=5),
    kills=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=3),
)
def test_each_update_counts_once_whatever_happens(
    name: str, deeds: dict[str, list[Deed]], happenings: list[Happening], kills: list[tuple[int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = _World(Path(folder), _SETTINGS[name], deeds, happenings)
        with _watched(world), contextlib.suppress(FederationError):
            for kill_after, state_is_written in kills:
                with contextlib.suppress(Killed):
                    world.process(kill_after, state_is_written)
                    break
            else:
                world.process()
        world.check_record()


@settings(max_examples=25, deadline=None)
@given(
    deeds=st.fixed_dictionaries({site: st.lists(st.builds(Deed, SECONDS), max_size=5) for site in SITES}),
    kills=st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=4),
)
def test_a_repeatedly_killed_server_ends_with_the_same_bits(
    deeds: dict[str, list[Deed]], kills: list[tuple[int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = _World(Path(folder) / "killed", _SETTINGS["all"], {site: list(todo) for site, todo in deeds.items()})
        undisturbed = _World(Path(folder) / "undisturbed", _SETTINGS["all"], deeds)
        with _watched(undisturbed):
            undisturbed.process()
        with _watched(world):
            for kill_after, state_is_written in kills:
                with contextlib.suppress(Killed):
                    world.process(kill_after, state_is_written)
                    break
            else:
                world.process()
        world.check_record()
        assert world.models.keys() == undisturbed.models.keys()
        for number, model in undisturbed.models.items():
            assert all(torch.equal(world.models[number][name], value) for name, value in model.items())
