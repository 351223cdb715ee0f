"""Seconds lost to faults.

Processes are killed, hung, slowed, cut off and poisoned. Each run is a federation of a real server and four sites on
loopback, from their startup kits, with mutual TLS. Each run has one fault. Time lost is the wall time from the sites
being ready to the end, less that of a run without faults.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain import brain_job, brain_sites
from fault_lab import Lab, another_clock, another_version, lab
from harness.bench import Bench, Settings
from harness.results import Target
from oncofed.alliance.session import quiet
from oncofed.errors import FederationError
from oncofed.job.spec import JobSpec

_SITE = "site-4"
_CUT_SECONDS = 30.0
_FULL_SECONDS = 20.0
_LONGEST_SECONDS = 400.0
_MOST_LOST = 60.0


@dataclass
class Fault:
    """A fault to inject.

    Attributes:
        name: for the table.
        act: called once the first round is over.
        settings: of the job, in addition to those of all.
        poisoned: site -> how its updates are bad.
        environments: returns environment variables of some sites' processes, given a folder.
    """

    name: str
    act: Callable[[Lab], None] = lambda _: None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    poisoned: dict[str, str] = field(default_factory=dict)
    environments: Callable[[Path], dict[str, dict[str, str]]] = lambda _: {}


def _hang(lab_: Lab) -> None:
    # Long enough for the round to end without the site; then it goes on.
    number = lab_.look().round
    with lab_.stopped("site job", _SITE):
        lab_.wait(lambda state: len(state.rounds_s) > number, "the round ends without the site")


def _slow(lab_: Lab) -> None:
    lab_.slow_down("site job", _SITE, 10, lambda: lab_.look().finished is not None)


def _cut(lab_: Lab) -> None:
    lab_.links[_SITE].cut()
    time.sleep(_CUT_SECONDS)
    lab_.links[_SITE].mend()


def _lossy(lab_: Lab) -> None:
    for link in lab_.links.values():
        link.lose(0.02)


def _full(lab_: Lab) -> None:
    with lab_.full_disk("site job", _SITE):
        time.sleep(_FULL_SECONDS)


def _doubled(lab_: Lab) -> None:
    with lab_.twin(_SITE):
        lab_.wait(lambda state: state.finished is not None, "the run ends", _LONGEST_SECONDS)


def _aborted(lab_: Lab) -> None:
    with quiet():
        lab_.alliance.session().abort_job(lab_.job.id)
    lab_.submit(lab_.spec)


_PATIENT = {"rounds": {"quorum": 3, "deadline_s": 20.0}}
FAULTS = [
    Fault("nothing"),
    Fault("a site's job process killed (-9)", lambda x: x.kill("site job", _SITE)),
    Fault("a site's main process killed (-9)", lambda x: x.kill("site", _SITE)),
    Fault("the server's job process killed (-9)", lambda x: x.kill("server job")),
    Fault("the server killed (-9)", lambda x: x.kill("server")),
    Fault("a site hangs (SIGSTOP) past the deadline", _hang, _PATIENT),
    Fault("a site ten times as slow", _slow, _PATIENT),
    Fault("a site's link cut for 30 s", _cut),
    Fault("2 % of all packets lost", _lossy),
    Fault("a site's disk full for 20 s", _full),
    Fault("a site's clock ten minutes slow", environments=lambda x: {_SITE: another_clock(x, -600)}),
    Fault("a second site with a site's name and kit", _doubled),
    Fault(
        "a site with another oncofed", settings=_PATIENT, environments=lambda x: {_SITE: another_version(x, "0.0.1")}
    ),
    Fault("the job aborted half-way, and run again", _aborted),
    Fault("a site sends NaN", settings=_PATIENT, poisoned={_SITE: "nan"}),
    Fault("a site sends other shapes", settings=_PATIENT, poisoned={_SITE: "shape"}),
    Fault("a site sends its update ten times", settings=_PATIENT, poisoned={_SITE: "scale"}),
    Fault("a site's update has its sign flipped, fedavg", poisoned={_SITE: "flip"}),
    Fault("the same, strategy median", settings={"strategy": {"name": "median"}}, poisoned={_SITE: "flip"}),
]


_QUICK = 2


def run(bench: Bench) -> None:
    """Run each fault, against a run without faults."""
    rounds = 2 if bench.quick else 4
    steps = 5 if bench.quick else 30
    spec = brain_job(
        bench.quick, {"rounds": {"number": rounds}, "training": {"steps_per_round": steps, "warmup_steps": 5}}
    )
    sites = brain_sites(bench.quick, bench.folder / "data")
    usual = 0.0
    for index, fault in enumerate(FAULTS[:_QUICK] if bench.quick else FAULTS):
        bench.doing(fault.name)
        settings: Settings = {"rounds": rounds, "sites": len(sites)}
        try:
            found = measure(fault, spec, sites, bench.folder / str(index), bench.quick)
        except FederationError as error:
            bench.skip(fault.name, "s lost", f"the run ended: {error}")
            continue
        usual = usual if index else found["seconds"]
        told = f"; told: {', '.join(found['told'])}" if found["told"] else ""
        note = f"{found['rounds']} rounds completed, Dice {found['score']:.3f}{told}"
        if index == 0:
            bench.measured("a run in which nothing happens", [usual], "s", settings=settings, note=note)
            continue
        lost = found["seconds"] - usual
        target = Target(of="value", value=_MOST_LOST) if "killed" in fault.name else None
        bench.measured(fault.name, [lost], "s lost", settings=settings, note=note, target=target)


def measure(fault: Fault, spec: JobSpec, sites: dict[str, Path], folder: Path, quick: bool) -> dict[str, Any]:
    """Run one federation with one fault.

    Raises:
        FederationError: the run did not come to its end.
    """
    changed = spec.changed(fault.settings)
    others = fault.environments(folder / "other")
    with lab(changed, sites, folder, fault.poisoned, others, shares_fork_server=quick) as running:
        running.wait(lambda state: state.ready_s is not None, "the sites are ready")
        started = time.time()
        running.wait(lambda state: state.rounds_s, "the first round is over")
        fault.act(running)
        running.wait(lambda s: s.finished is not None, "the run ends", _LONGEST_SECONDS)
        seconds = time.time() - started
        state = running.look()
    assert state.finished is not None
    told = sorted({incident.kind for incident in state.incidents})
    scores = {site: e["mean"] for site, e in state.finished.test.items()}
    return {
        "seconds": seconds,
        "rounds": len(state.participation),
        "told": told,
        "score": sum(scores.values()) / len(scores),
    }
