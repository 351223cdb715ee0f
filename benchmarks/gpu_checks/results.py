"""Result files: JSON lines, the first with the machine."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_checks.claims import CLAIMS, Claim, claim_named
from gpu_checks.forks import told_of
from oncofed.errors import OncofedError, SpecError

SCHEMA = 1

# FAILED: the check hung, died or raised before it had a result. walked: it held on a CPU, which confirms nothing
# about GPUs.
Verdict = Literal["CONFIRMED", "walked", "REFUTED", "FAILED", "figure", "not checked"]
_BAD: tuple[Verdict, ...] = ("REFUTED", "FAILED")
_GOOD: tuple[Verdict, ...] = ("CONFIRMED", "walked")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Header(_Model):
    """The first line."""

    schema_: int = Field(SCHEMA, alias="schema")
    started: str = Field(description="UTC, ISO 8601")
    commit: str = Field(description="of the code, with '+' where files differ from it; empty where there is no git")
    device: Literal["cuda", "cpu"]
    environment: dict[str, Any] = Field(description="as ``oncofed.machine.fingerprint`` returns it")


class Line(_Model):
    """A finding of a check."""

    check: str
    claim: str | None = Field(None, description="name of the claim that the verdict is about")
    verdict: Verdict
    text: str
    numbers: dict[str, Any] = {}
    error: str = ""


class Run(_Model):
    """A run, read from its file."""

    header: Header
    lines: list[Line]

    def verdict(self, claim: Claim) -> Verdict:
        """Return a claim's verdict; one refutation outweighs all confirmations."""
        found = {line.verdict for line in self.lines if line.claim == claim.name}
        if "REFUTED" in found:
            return "REFUTED"
        good = found.intersection(_GOOD)
        if len(good) != 1 or "not checked" in found or self._has_failed(claim.check):
            return "not checked"
        return good.pop()

    def _has_failed(self, check: str) -> bool:
        return any(line.check == check and line.verdict == "FAILED" for line in self.lines)


class Report:
    """Prints and writes a check's findings line by line.

    Args:
        file: of JSON lines.
        check: whose lines these are.
        device: "cuda" or "cpu". On a CPU no claim is confirmed: one that a CPU can refute is walked where it holds, and
            any other gives a figure.
    """

    def __init__(self, file: Path, check: str, device: str) -> None:
        self._file, self._check, self._device = file, check, device

    def claim(self, name: str, holds: bool, text: str = "", **numbers: Any) -> None:
        """Report whether a claim holds.

        Args:
            name: of a claim of this check.
            holds: true confirms (on a CPU: walked), false refutes.
            text: the subject; empty: the claim itself.
            numbers: that the verdict follows from.
        """
        cpu = self._device == "cpu"
        verdict: Verdict = "REFUTED" if not holds else "walked" if cpu else "CONFIRMED"
        if cpu and not self._own(name).on_cpu:
            verdict = "figure"
        self._keep(name, verdict, text, numbers)

    def figure(self, text: str, **numbers: Any) -> None:
        """Report numbers without a claim."""
        self._keep(None, "figure", text, numbers)

    def skip(self, name: str, why: str) -> None:
        """Report why a claim was not checked."""
        self._own(name)
        self._keep(name, "not checked", "", error=why)

    def fail(self, why: str) -> None:
        """Report that the check failed."""
        self._keep(None, "FAILED", "the check itself", error=why)

    @contextlib.contextmanager
    def attempt(self, name: str, text: str) -> Iterator[None]:
        """Refute a claim if the block raises."""
        self._own(name)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a GPU's errors are of many types
            self._keep(name, "REFUTED", text, error=told_of(error))

    def _own(self, name: str) -> Claim:
        claim = claim_named(name)
        if claim.check != self._check:
            raise ValueError(f"the claim {name} is of the check {claim.check}, found in {self._check}")
        return claim

    def _keep(self, claim: str | None, verdict: Verdict, text: str, numbers: Any = None, error: str = "") -> None:
        text = text or (self._own(claim).says if claim else "")
        line = Line(
            check=self._check, claim=claim, verdict=verdict, text=text, numbers=_plain(numbers or {}), error=error
        )
        append(self._file, line)
        print(shown(line), flush=True)


def append(file: Path, model: BaseModel) -> None:
    """Write a line and sync it.

    A lent machine may be taken back at any moment.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (model.model_dump_json(by_alias=True, exclude_defaults=False) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shown(line: Line) -> str:
    """Return a line's text for a terminal."""
    numbers = "  ".join(f"{name}={_short(value)}" for name, value in line.numbers.items())
    told = ": ".join(part for part in (line.text, numbers, line.error) if part)
    return f"{line.verdict:<11} {line.claim or line.check:<13} {told}"


def new_file(folder: Path, device: str, commit: str) -> Path:
    """Return the file of a new run.

    On a CPU its name begins with cpu-.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return folder / (("cpu-" if device == "cpu" else "") + now + (f"-{commit[:8]}" if commit else "") + ".jsonl")


def read_run(file: Path) -> Run:
    """Return a run without an incomplete last line.

    Raises:
        SpecError: it is no such file, or of a schema that this version does not know.
    """
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    first, *others = whole.split("\n")
    try:
        header = Header.model_validate_json(first)
        lines = [Line.model_validate(json.loads(line)) for line in others]
    except (ValidationError, ValueError) as error:
        what = str(error).partition("\n")[0]
        raise SpecError(f"{file}: {what}. Expected a file that `make gpu` wrote; take it from git again") from None
    if header.schema_ != SCHEMA:
        raise SpecError(f"{file}: schema {header.schema_}, expected {SCHEMA}: a file that `make gpu` wrote")
    return Run(header=header, lines=lines)


def read_runs(folder: Path) -> list[Run]:
    """Return the runs on GPUs in a folder, oldest first."""
    files = [file for file in folder.glob("*.jsonl") if not file.name.startswith("cpu-")]
    return sorted((read_run(file) for file in files), key=lambda run: run.header.started)


def exit_status(run: Run) -> int:
    """Return 1 after a refuted claim or failed check.

    Else 0.
    """
    return int(any(line.verdict in _BAD for line in run.lines))


def summary(run: Run) -> str:
    """Return the outcome of each claim, and failures."""
    rows = [f"{run.verdict(claim):<11} {claim.name:<13} {claim.says}" for claim in _looked_at(run)]
    wrong = [shown(line) for line in run.lines if line.verdict in _BAD]
    return "\n".join(["", "Claims:", *rows, *(["", "Refuted or failed:", *wrong] if wrong else [])])


def _looked_at(run: Run) -> Sequence[Claim]:
    checks = {line.check for line in run.lines}
    return [claim for claim in CLAIMS if claim.check in checks]


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return numbers that JSON can hold, without infinity."""
    return json.loads(json.dumps(numbers, default=str), parse_constant=str)  # type: ignore[no-any-return]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)


class NoGPUError(OncofedError):
    """Torch finds no GPU."""

    exit_code = 3
