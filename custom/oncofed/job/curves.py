"""A run's curves: in TensorBoard's files, and where an engineer keeps experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch.utils.tensorboard import SummaryWriter

from oncofed.rounds.events import Event, Finished, RoundEnded, SiteProgress, Started, Validated

# Name of the curves over all sites.
MEAN = "mean"


class Point(NamedTuple):
    """One point of a curve.

    Attributes:
        site: whose it is, or ``MEAN``.
        name: of the curve, such as "train/loss".
        value: at that step.
        step: optimizer steps of a site's loss, else the number of the round.
    """

    site: str
    name: str
    value: float
    step: int


class Tracker(Protocol):
    """A place that keeps a run's curves and files."""

    def write(self, event: Event, points: Sequence[Point]) -> None:
        """Take an event and the points that follow from it."""

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Take the job's settings."""

    def attach(self, files: Sequence[Path]) -> None:
        """Take files of the ended run."""

    def interrupted(self, goes_on: bool = False) -> None:
        """Note that the run was not followed to its end; perhaps it goes on."""

    def close(self) -> None:
        """End; what was written is kept."""


class PointReader:
    """Turns a run's events into points."""

    def __init__(self) -> None:
        self._metric = "score"

    def points(self, event: Event) -> Iterator[Point]:
        """Yield the points of the next event."""
        if isinstance(event, Started) and event.metric:
            self._metric = event.metric
        elif isinstance(event, SiteProgress) and event.loss is not None:
            yield Point(event.site, "train/loss", event.loss, event.step or 0)
        elif isinstance(event, Validated):
            yield from self._scores(event)
        elif isinstance(event, RoundEnded):
            if event.loss is not None:
                yield Point(MEAN, "train/loss", event.loss, event.round)
            yield Point(MEAN, "time/round_s", event.seconds, event.round)
        elif isinstance(event, Finished):
            yield from self._tested(event)

    def _scores(self, event: Validated) -> Iterator[Point]:
        for site, score in event.sites.items():
            if score is not None:
                yield Point(site, f"validation/{self._metric}", score, event.round)
            for name, value in event.by_class.get(site, {}).items():
                yield Point(site, f"validation_by_class/{name}", value, event.round)
        if event.mean is not None:
            yield Point(MEAN, f"validation/{self._metric}", event.mean, event.round)
        for name, value in (event.summed or {}).get("by_class", {}).items():
            yield Point(MEAN, f"validation_by_class/{name}", value, event.round)

    def _tested(self, event: Finished) -> Iterator[Point]:
        means = {site: found["mean"] for site, found in event.test.items() if found.get("mean") is not None}
        for site, value in means.items():
            yield Point(site, f"test/{self._metric}", value, event.best_round)
        mean = (event.summed or {}).get("mean")
        if means or mean is not None:
            value = mean if mean is not None else sum(means.values()) / len(means)
            yield Point(MEAN, f"test/{self._metric}", value, event.best_round)


class Curves:
    """Writes a run's curves as TensorBoard's files, and to trackers.

    One folder per site and one for the mean.

    Args:
        folder: of the files.
        trackers: that get the same points.
    """

    def __init__(self, folder: Path, trackers: Sequence[Tracker] = ()) -> None:
        self._folder, self._trackers = folder, trackers
        self._writers: dict[str, SummaryWriter] = {}
        self._reader = PointReader()

    def write(self, event: Event) -> None:
        """Add an event's points."""
        points = list(self._reader.points(event))
        for point in points:
            self._of(point.site).add_scalar(point.name, point.value, point.step)
        for tracker in self._trackers:
            tracker.write(event, points)

    def flush(self) -> None:
        """Flush the files, for a running TensorBoard."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()

    def _of(self, name: str) -> SummaryWriter:
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name), flush_secs=5)
        return self._writers[name]
