"""Result files: JSON with all samples and settings."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed.errors import OncofedError, SpecError

SCHEMA = 1

Better = Literal["higher", "lower"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Baseline(_Model):
    """Another program with the same work.

    Runs in turn with oncofed's.
    """

    name: str = Field(description="program and version or setting, for tables")
    samples: list[float] = Field(default=[], description="in the figure's unit; paired with the figure's samples")
    missing: str = Field("", description="why there are no samples")

    @property
    def value(self) -> float | None:
        """Median of the samples."""
        return statistics.median(self.samples) if self.samples else None


class Limit(_Model):
    """A limit of the machine, measured in the same run."""

    name: str
    value: float = Field(description="in the figure's unit")


class Target(_Model):
    """Target of a figure.

    ``of`` "value": the median itself, at least or at most, as ``better`` says; "baseline": times as good as the
    baseline; "limit": share of the limit.
    """

    of: Literal["value", "baseline", "limit"]
    value: float


class Figure(_Model):
    """A measurement."""

    name: str
    unit: str
    better: Better = "higher"
    samples: list[float] = Field(default=[], description="of oncofed, in the order of measurement")
    baseline: Baseline | None = None
    others: list[Baseline] = []
    limit: Limit | None = None
    target: Target | None = None
    settings: dict[str, str | int | float | bool | None] = Field(
        default={}, description="two figures of a name are compared only where these are the same"
    )
    note: str = Field("", description="why a target is missed, or a caveat")
    skipped: str = Field("", description="why nothing was measured")

    @property
    def value(self) -> float | None:
        """Median of the samples; None where nothing was measured."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Quartiles of the samples.

        None for fewer than three samples.
        """
        if len(self.samples) < 3:
            return None
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    @property
    def over_baseline(self) -> float | None:
        """Factor to the baseline; above one is better."""
        return self._over(self.baseline.value if self.baseline else None)

    @property
    def of_limit(self) -> float | None:
        """Share of the limit, whatever the unit."""
        return self._over(self.limit.value if self.limit else None)

    @property
    def met(self) -> bool | None:
        """Whether the target is met.

        None without a target or samples.
        """
        if self.target is None:
            return None
        if self.target.of == "value":
            if self.value is None:
                return None
            return self.value >= self.target.value if self.better == "higher" else self.value <= self.target.value
        reached = self.over_baseline if self.target.of == "baseline" else self.of_limit
        return None if reached is None else reached >= self.target.value

    def _over(self, other: float | None) -> float | None:
        value = self.value
        if not value or not other:
            return None
        return value / other if self.better == "higher" else other / value


class SuiteResult(_Model):
    """Result of one suite."""

    name: str
    status: Literal["running", "complete", "failed", "interrupted"] = "running"
    seconds: float = 0.0
    error: str = Field("", description="last line of a failed suite's output")
    disturbed_by: list[str] = Field(default=[], description="other work on the machine at the suite's start")
    figures: list[Figure] = []


class BenchmarkRun(_Model):
    """A run of suites, as ``benchmarks/results/ID.json`` holds it."""

    schema_: int = Field(SCHEMA, alias="schema")
    id: str = Field(description="time of the start in UTC, then the commit; that of a quick run begins with quick-")
    started: str = Field(description="UTC, ISO 8601")
    commit: str = Field(description="of the code, with '+' where files differ from it; empty where there is no git")
    quick: bool = Field(description="little work: figures do not measure speed")
    environment: dict[str, Any] = Field(
        description="machine, GPU, driver, versions; machine is a digest of the hardware"
    )
    limits: dict[str, float] = Field(default={}, description="name -> value, in bytes/s or FLOP/s")
    suites: list[SuiteResult] = []

    @property
    def machine(self) -> str:
        """Digest of the hardware."""
        return str(self.environment.get("machine", ""))

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield each figure with its suite's name."""
        for suite in self.suites:
            for figure in suite.figures:
                yield suite.name, figure

    def write(self, folder: Path) -> Path:
        """Write ``folder/ID.json`` atomically, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.id}.json"
        new = path.with_suffix(".new")
        new.write_text(self.model_dump_json(indent=1, by_alias=True, exclude_defaults=False) + "\n", encoding="utf-8")
        new.replace(path)
        return path


def read_run(path: Path) -> BenchmarkRun:
    """Read a run from its file.

    Raises:
        SpecError: it is not such a file, or has an unknown schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise SpecError(f"{path}: no JSON ({error}). Expected a file that `oncofed bench run` wrote") from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise SpecError(f"{path}: schema {found!r}, expected {SCHEMA}: a file that `oncofed bench run` wrote")
    try:
        return BenchmarkRun.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SpecError(f"{path}: {where}: {first['msg']}. Was it edited? Take it from git again") from None


def read_runs(folder: Path) -> list[BenchmarkRun]:
    """Return all runs of a folder, oldest first."""
    return sorted((read_run(path) for path in folder.glob("*.json")), key=lambda run: run.started)


def find_run(name: str, folder: Path) -> BenchmarkRun:
    """Return a run by file, id, commit or age.

    Of an id or a commit the beginning is enough; age is "last" or "previous".

    Raises:
        SpecError: none or several match.
    """
    if name.endswith(".json") or os.sep in name:
        return read_run(Path(name))
    runs = read_runs(folder)
    if name in ("last", "previous"):
        behind = 1 if name == "last" else 2
        if len(runs) < behind:
            raise SpecError(
                f"{folder} holds {len(runs)} runs, so there is no {name} one. Run `oncofed bench run` first"
            )
        return runs[-behind]
    fitting = [run for run in runs if run.id.startswith(name) or run.commit.startswith(name)]
    if not fitting:
        known = ", ".join(run.id for run in runs[-5:]) or "none"
        raise SpecError(f"no run {name!r} in {folder}; the last ones are: {known}")
    if len(fitting) > 1:
        raise SpecError(
            f"{name!r} fits {len(fitting)} runs: {', '.join(run.id for run in fitting[-5:])}. Give more of it"
        )
    return fitting[0]


class BenchmarkError(OncofedError):
    """A benchmark could not be completed."""
