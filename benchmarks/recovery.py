"""What happens when things go wrong: real processes, killed, hung, slowed, cut off and poisoned, one fault a run.

Each run is a federation of a real server and four sites on loopback, from their startup kits, with mutual TLS. Time
lost is the wall time from the sites being ready to the end, less that of a run in which nothing happens.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_lab import Lab, another_clock, another_version, lab
from figures import hand_over, options
from oncofed.alliance.local import quiet
from oncofed.data.brain import make_hospitals
from oncofed.errors import FederationError
from oncofed.job.spec import JobSpec, read_job

_SITE = "site-4"
_CUT_SECONDS = 30.0
_FULL_SECONDS = 20.0
_LONGEST_SECONDS = 400.0


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: for the table.
        act: what is done once the first round is over.
        settings: of the job, beside those of all.
        poisoned: site -> how its updates are bad.
        environments: makes, in a folder, what the processes of some sites find in their environment.
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


def measure(fault: Fault, spec: JobSpec, sites: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Run one federation with one fault and return what came of it."""
    changed = spec.changed(fault.settings)
    with lab(changed, sites, folder, fault.poisoned, fault.environments(folder / "other")) as running:
        running.wait(lambda state: state.ready_s is not None, "the sites are ready")
        started = time.time()
        running.wait(lambda state: state.rounds_s, "the first round is over")
        try:
            fault.act(running)
            state = running.wait(lambda s: s.finished is not None, "the run ends", _LONGEST_SECONDS)
        except FederationError as error:
            return {"fault": fault.name, "completed": False, "reason": str(error)}
        seconds = time.time() - started
        state = running.look()
    assert state.finished is not None
    told = sorted({incident["kind"] for incident in state.incidents})
    scores = {site: e["mean"] for site, e in state.finished["test"].items()}
    return {
        "fault": fault.name,
        "completed": True,
        "seconds": seconds,
        "rounds": len(state.participation),
        "told": told,
        "score": sum(scores.values()) / len(scores),
    }


def main() -> None:
    """Run the faults, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument("--only", default="", help="faults whose name fits this regular expression")
    parser.add_argument("--rounds", type=int, default=4, help="of each run (default 4)")
    arguments = parser.parse_args()
    spec = read_job("brain_tissue_segmentation").changed(
        {"rounds": {"number": arguments.rounds}, "training": {"steps_per_round": 30, "warmup_steps": 5}}
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="oncofed-faults-") as temporary:
        folder = Path(temporary)
        sites = make_hospitals(folder / "data", seed=1)
        for index, fault in enumerate(FAULTS):
            if index == 0 or re.search(arguments.only, fault.name):
                rows.append(measure(fault, spec, sites, folder / str(index)))
                rows[-1]["lost_s"] = rows[-1].get("seconds", 0.0) - rows[0]["seconds"]
                if not arguments.json:
                    print(_line(rows[-1]), flush=True)
    record = {"benchmark": "faults", "rounds": arguments.rounds, "sites": 4, "rows": rows}
    hand_over(record, arguments)


def _line(row: dict[str, Any]) -> str:
    if not row["completed"]:
        return f"| {row['fault']} | the run ended: {row['reason']} | – | – |"
    what = f"{row['rounds']} rounds completed" + (f"; told: {', '.join(row['told'])}" if row["told"] else "")
    return f"| {row['fault']} | {what} | {row['lost_s']:.0f} s | {row['score']:.3f} |"


if __name__ == "__main__":
    main()
