"""The server's record of a run: one event a line.

The live view, the TensorBoard curves and the result are derived from it. Each kind of event is a class whose fields are
the line's keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

EVENTS_FILE = "events.jsonl"
MODELS_FOLDER = "models"
BEST_MODEL = "best.safetensors"
# Group of FLARE's job statistics that holds the run's digest.
STATS_GROUP = "oncofed"
# Bounds a digest; the record has every event.
_MOST_IN_DIGEST = 500


class InDigest(enum.Enum):
    """Which events of a class a digest holds."""

    START = enum.auto()  # all, even if many others followed
    NEWEST = enum.auto()
    NEWEST_OF_SITE = enum.auto()
    NONE = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of events.

    Attributes:
        kind: name of the class in the record.
        in_digest: which events of the class a digest holds.
        sparse: whether fields that are None are left out of the line.
        time: when it happened, in seconds since 1970 by the server's clock.
    """

    kind: ClassVar[str]
    in_digest: ClassVar[InDigest] = InDigest.NEWEST
    sparse: ClassVar[bool] = False

    time: float = field(default_factory=time.time)

    def record(self) -> dict[str, Any]:
        """Return the event as its line holds it."""
        values = {name: value for name, value in vars(self).items() if not (self.sparse and value is None)}
        return {"time": values.pop("time"), "kind": self.kind, **values}


@dataclass(frozen=True, kw_only=True)
class Incident(Event):
    """Base class of events that users should see.

    Attributes:
        message: sentence about it, with names of fields in braces.
    """

    message: ClassVar[str]

    def __str__(self) -> str:
        return self.message.format_map(vars(self))


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The server runs a job, perhaps after a restart.

    Attributes:
        sites: registered ones.
        rounds: planned; 0 where a model is only evaluated.
        steps_per_round: optimizer steps of a site in a round.
        metric: short name of the validation score.
        strategy: name of the federated algorithm.
    """

    kind = "started"
    in_digest = InDigest.START

    sites: list[str]
    rounds: int
    steps_per_round: int
    metric: str | None = None
    strategy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resumed(Incident):
    """A restarted server goes on with a round."""

    kind = "resumed"
    message = "the server was started again; the run goes on with round {round}"

    round: int


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    """A site has loaded its data.

    Attributes:
        site: its name.
        cases: numbers of cases by split, and what else the site reports of its data.
        started: seconds since the server began to wait.
    """

    kind = "joined"
    in_digest = InDigest.START

    site: str
    cases: dict[str, Any]
    started: float


@dataclass(frozen=True, kw_only=True)
class Excluded(Incident):
    """A site's data cannot be used."""

    kind = "excluded"
    message = "{site} does not take part: {reason}"

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EncoderUnknown(Incident):
    """A site brings features, all or some without the digest of the encoder's weights."""

    kind = "encoder_unknown"
    message = (
        "{site} does not know of all its features which weights made them: they count, as the job pins none "
        "(task.encoder.digest)"
    )

    site: str


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """Enough sites have joined: the first round begins.

    Attributes:
        seconds: since the server began to wait.
        sites: ``Joined.cases`` by site.
    """

    kind = "ready"
    in_digest = InDigest.START

    seconds: float
    sites: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Standardised(Event):
    """The model has the mean and spread of the table's numbers.

    Attributes:
        columns: column -> mean and spread over the sites' training patients.
        sites: that told sums, by column; None in records of older versions.
    """

    kind = "standardised"
    in_digest = InDigest.START
    sparse = True

    columns: dict[str, list[float]]
    sites: dict[str, list[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class NotStandardised(Incident):
    """No site told the sums of some of the table's numbers."""

    kind = "not_standardised"
    message = (
        "no site told sums of {columns}: the middle and a quarter of the plausible range stand for mean and spread"
    )

    columns: str


@dataclass(frozen=True, kw_only=True)
class TemplateNotAgreed(Incident):
    """No site told the sums of some of the template's numbers."""

    kind = "template_not_agreed"
    message = "no site told sums of {columns}: published values stand for them in the template of stains"

    columns: str


@dataclass(frozen=True, kw_only=True)
class TaskSent(Event):
    """Sites were sent a task.

    Attributes:
        task: name of the task.
        round: number of the round, 0 before the first.
        split: of the cases to score; empty for tasks that score none.
        sites: names.
    """

    kind = "task"
    in_digest = InDigest.NONE

    task: str
    round: int
    split: str
    sites: list[str]


@dataclass(frozen=True, kw_only=True)
class SiteProgress(Event):
    """A site reports how far it is.

    Attributes:
        site: its name.
        phase: such as ``training``.
        round: number of the round.
        step: optimizer steps since the start of the run while it trains, else cases done.
        steps: how many there will be.
        loss: of the last step.
    """

    kind = "progress"
    in_digest = InDigest.NEWEST_OF_SITE
    sparse = True

    site: str
    phase: str | None = None
    round: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """A site's result arrived and counts."""

    kind = "answer"
    in_digest = InDigest.NEWEST_OF_SITE

    site: str
    task: str
    round: int


@dataclass(frozen=True, kw_only=True)
class Late(Incident):
    """An update arrived after its round had ended.

    Attributes:
        site: its name.
        round: of the update.
        seconds: since that round began.
    """

    kind = "late"
    message = "the update of {site} for round {round} came after the round had ended"

    site: str
    round: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Dropped(Incident):
    """A result arrived too late to count.

    Attributes:
        site: its name.
        task: name of the task.
        round: of the task, where known.
        staleness: rounds between the model that was trained and the present one, of an update too old.
    """

    kind = "dropped"
    message = "an update of {site} came too late and was left out"
    sparse = True

    site: str
    task: str
    round: int | None = None
    staleness: int | None = None


@dataclass(frozen=True, kw_only=True)
class Refused(Incident):
    """A site's result does not count."""

    kind = "refused"
    message = "an update of {site} was refused in round {round}: {reason}"

    site: str
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Lost(Incident):
    """A site is away."""

    kind = "lost"
    message = "{site} was lost: {reason}"

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Returned(Incident):
    """A lost site is back."""

    kind = "returned"
    message = "{site} is back"

    site: str


@dataclass(frozen=True, kw_only=True)
class NotKept(Incident):
    """The server could not write a round's state or model."""

    kind = "not_kept"
    message = "the server could not keep round {round} ({reason}): free some space there"

    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class SiteNotKept(Incident):
    """A site could not write its state of a round."""

    kind = "site_not_kept"
    message = "{site} could not keep its state of round {round} ({reason}): free some space there"

    site: str
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """The model after a round was scored on validation cases.

    Attributes:
        round: number of the round, 0 before the first.
        mean: over the sites that have a score; None where none has.
        sites: score by site.
        by_class: site -> class or target -> score, of those that at least five patients tell.
    """

    kind = "validation"

    round: int
    mean: float | None
    sites: dict[str, float | None]
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundEnded(Event):
    """A round made a new model.

    Attributes:
        round: its number, from 1.
        seconds: wall time.
        slowest_site_s: seconds that the slowest site trained and validated.
        losses: mean training loss by site.
        cases: training cases by site.
        participation: what became of each site, as ``RoundState.participation`` returns it.
    """

    kind = "round"

    round: int
    seconds: float
    slowest_site_s: float
    losses: dict[str, float]
    cases: dict[str, int] | None = None
    participation: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Summed(Event):
    """Masked updates were added up, and the sum unmasked.

    Attributes:
        round: number of the round.
        attempt: of the round, from 1.
        sites: whose updates are in the sum.
        lost: sites of the roster whose updates are not.
        threshold: sites without whose shares no mask could be lifted.
        seconds: from the roster to the sum.
    """

    kind = "summed"

    round: int
    attempt: int
    sites: list[str]
    lost: list[str]
    threshold: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SumFailed(Incident):
    """Masked updates could not be added up; the round goes on."""

    kind = "sum_failed"
    message = "round {round}: the masked updates gave no sum ({reason}); they are asked for again"

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class EarlyStop(Incident):
    """Scores have not improved for the job's patience."""

    kind = "early_stop"
    message = "no better score since round {best_round}: the run ends after round {round}"

    round: int
    best_round: int


@dataclass(frozen=True, kw_only=True)
class CrossSite(Event):
    """A site's model was scored on all test cases.

    Attributes:
        model: site that trained it.
        scores: by site that tested it.
    """

    kind = "cross_site"

    model: str
    scores: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run has ended well.

    Attributes:
        best_round: whose model was kept.
        best_validation: its validation score, where finite.
        test: evaluation of that model on test cases by site.
        personal: the same of personal models.
        cross_site: test score by site of the model and site of the cases; None where the job asks for none.
        pooled: test over the patients of all sites; this and the next two as ``OverSites`` writes them.
        paired: comparison with another model.
        calibration: how sure the model should be.
    """

    kind = "finished"

    best_round: int
    best_validation: float | None
    test: dict[str, dict[str, Any]]
    personal: dict[str, dict[str, Any]] | None = None
    cross_site: dict[str, dict[str, float | None]] | None = None
    pooled: dict[str, Any] | None = None
    paired: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """Somebody aborted the job."""

    kind = "stopped"


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The job cannot go on."""

    kind = "failed"

    reason: str


@dataclass(frozen=True, kw_only=True)
class ProfileStarted(Event):
    """The server gathers statistics of the sites' data."""

    kind = "started"

    sites: list[str]


@dataclass(frozen=True, kw_only=True)
class ProfileFinished(Event):
    """Statistics of all sites are there.

    Attributes:
        statistics: value by name of the statistic and of the feature.
        patients: by site.
    """

    kind = "finished"

    statistics: dict[str, dict[str, Any]]
    patients: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """A line that this version of oncofed cannot read.

    Attributes:
        name: kind of the event.
    """

    kind = "unknown"

    name: str

    def __str__(self) -> str:
        return f"the server reports {self.name!r}, which this version of oncofed does not know: skipped"


TRAINING_EVENTS: tuple[type[Event], ...] = (
    Started,
    Resumed,
    Joined,
    Excluded,
    EncoderUnknown,
    Ready,
    Standardised,
    NotStandardised,
    TemplateNotAgreed,
    TaskSent,
    SiteProgress,
    Answered,
    Late,
    Dropped,
    Refused,
    Lost,
    Returned,
    NotKept,
    SiteNotKept,
    Validated,
    RoundEnded,
    Summed,
    SumFailed,
    EarlyStop,
    CrossSite,
    Finished,
    Stopped,
    Failed,
)
PROFILE_EVENTS: tuple[type[Event], ...] = (ProfileStarted, ProfileFinished, Failed)


def read_event(record: Mapping[str, Any], events: Sequence[type[Event]] = TRAINING_EVENTS) -> Event:
    """Return the event that a line holds.

    Args:
        record: the line.
        events: classes of the events that the record may have.

    Returns:
        ``Unknown`` for a line of another version that has a kind, or lacks a field, of these classes.
    """
    known = {event.kind: event for event in events}.get(str(record.get("kind")))
    if known is not None:
        names = {f.name for f in dataclasses.fields(known)}
        with contextlib.suppress(TypeError):
            return known(**{name: value for name, value in record.items() if name in names})
    return Unknown(time=float(record.get("time", 0.0)), name=str(record.get("kind")))


class EventLog:
    """Appends events to a file, from any thread.

    Lines that a full disk does not take are kept, and written with a later event. A partial line of a killed process is
    removed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        written = path.read_bytes()
        self._file.truncate(written.rfind(b"\n") + 1)
        self._pending = b""
        self._lock = threading.Lock()
        # The digest continues from its last position: a record of weeks is long.
        self._digest_lock = threading.Lock()
        self._reader = EventReader(path)
        self._first: deque[Event] = deque(maxlen=_MOST_IN_DIGEST)
        self._last: deque[Event] = deque(maxlen=_MOST_IN_DIGEST)
        self._latest: dict[str, Event] = {}

    def write(self, event: Event) -> None:
        """Append one event."""
        line = json.dumps(event.record()).encode() + b"\n"
        with self._lock:
            if self._file.closed:
                return
            self._pending += line
            with contextlib.suppress(OSError):
                while self._pending:
                    self._pending = self._pending[self._file.write(self._pending) :]

    def digest(self) -> list[dict[str, Any]]:
        """Return the lines that a remote view needs.

        At most a thousand, and one for each site.
        """
        with self._digest_lock:
            for event in self._reader.read():
                if event.in_digest is InDigest.START:
                    self._first.append(event)
                elif event.in_digest is InDigest.NEWEST:
                    self._last.append(event)
                elif isinstance(event, (SiteProgress, Answered)):
                    self._latest[event.site] = event
            events = sorted([*self._first, *self._last, *self._latest.values()], key=lambda event: event.time)
            return [event.record() for event in events]

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
            self._file.close()


class EventReader:
    """Reads the events that were added since the last call.

    The file may still be missing, or in the middle of a write.

    Args:
        path: of the record.
        events: classes of the events that it may have.
    """

    def __init__(self, path: Path, events: Sequence[type[Event]] = TRAINING_EVENTS) -> None:
        self._path = path
        self._events = events
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """Yield the new complete lines."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield read_event(json.loads(line), self._events)
