"""The settings that a search tries, and their values."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from oncofed.algorithms.registry import ALGORITHMS
from oncofed.errors import SpecError
from oncofed.job.spec import JobSpec
from oncofed.settings import one_type

Value = float | int | bool | str | None
# Sections whose settings change how a job learns. Those of data, task and evaluation change what its score means, and
# privacy's what is promised.
SECTIONS = ("training", "strategy", "model", "exchange", "rounds")
# A search compares trials round by round, of one start: rounds are its resource (--rounds). The others name files.
_FIXED = ("rounds.number", "model.code", "model.declared", "model.bundle", "model.bundle_digest", "strategy.name")
# Where a tenth and ten times of the job's own value make no sense.
_RANGES = {
    "training.momentum": "0.8..0.99",
    "training.weight_decay": "1e-6..1e-2:log",
    "training.warmup_steps": "0..100",
}
_WIDER, _WIDER_INTEGER = 10, 4
_EXAMPLE = "learning_rate=1e-4..1e-2:log,strategy.mu=0|0.01|0.1"


@dataclass(frozen=True)
class Setting:
    """A setting of a job that a search tries.

    Attributes:
        name: section and name, such as "training.learning_rate"; "strategy" for the algorithm itself.
        choices: its values, where they are listed.
        low: end of its range, where it has one.
        high: the other end, included.
        is_log: whether values are drawn evenly by their logarithm.
        is_integer: whether values are whole numbers.
    """

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    is_log: bool = False
    is_integer: bool = False

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name}={'|'.join(map(shown, self.choices))}"
        return f"{self.name}={self.low:g}..{self.high:g}{':log' if self.is_log else ''}"

    def holds(self, value: Value) -> bool:
        """Return whether a value is among those tried."""
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Value, ...]:
        """All choices, or both ends of the range."""
        return self.choices or ((int(self.low), int(self.high)) if self.is_integer else (self.low, self.high))


@dataclass(frozen=True)
class Space:
    """The settings that a search tries.

    Attributes:
        settings: each once.
    """

    settings: tuple[Setting, ...]

    def changed(self, spec: JobSpec, values: Mapping[str, Value]) -> JobSpec:
        """Return a job with values by name of the setting.

        Raises:
            SpecError: they do not fit together.
        """
        return spec.changed(_sections(values))

    def own_values(self, spec: JobSpec) -> dict[str, Value] | None:
        """Return the job's own values; None where one is outside of the space."""
        own = {setting.name: _own(spec, setting.name) for setting in self.settings}
        return own if all(setting.holds(own[setting.name]) for setting in self.settings) else None

    @property
    def size(self) -> float:
        """Number of combinations; infinite where a setting has a range."""
        return math.prod(len(setting.choices) or math.inf for setting in self.settings)

    def combinations(self) -> Iterator[dict[str, Value]]:
        """Yield each combination of choices."""
        names = [setting.name for setting in self.settings]
        for values in itertools.product(*(setting.choices for setting in self.settings)):
            yield dict(zip(names, values, strict=True))

    def __str__(self) -> str:
        return ",".join(map(str, self.settings))


def shown(value: Value) -> str:
    """Return a value as ``job.yaml`` has it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_space(text: str, spec: JobSpec) -> Space:
    """Return the search space of a text such as ``learning_rate=1e-4..1e-2:log,strategy.mu=0|0.01|0.1``.

    A setting without a range has one around the job's own value, or all of its values where they are few.

    Args:
        text: settings with commas between them.
        spec: the job, against whose schema each value is checked.

    Raises:
        SpecError: a setting is not known or cannot be searched, or a value is not allowed; says what is.
    """
    settings: list[Setting] = []
    for part in (part.strip() for part in text.split(",")):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not name or (equals and not values):
            raise SpecError(f"--over {text}: found {part or 'nothing'!r}, expected settings such as {_EXAMPLE}")
        setting = _read(_full_name(name, spec), values, spec)
        if any(setting.name == other.name for other in settings):
            raise SpecError(f"--over {text}: {setting.name} is given twice")
        settings.append(setting)
    names = [setting.name for setting in settings]
    if "strategy" in names and any(name.startswith("strategy.") for name in names):
        raise SpecError(
            f"--over {text}: strategies have settings of their own. Search the strategy first, then its settings"
        )
    space = Space(tuple(settings))
    for setting in settings:
        _check(setting, spec)
    return space


def _check(setting: Setting, spec: JobSpec) -> None:
    """Check the ends of a range, or all choices, against the job's schema."""
    refused = filter(None, (_refusal(spec, setting.name, value) for value in setting.ends))
    if reason := next(refused, None):
        raise SpecError(f"--over {setting}: {reason}")


def _full_name(name: str, spec: JobSpec) -> str:
    """Return a setting's name with its section."""
    known = _settings(spec)
    found = [full for full in known if name in (full, full.rpartition(".")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(f"--over {name}: there are {' and '.join(found)}; name one of them in full")
    section = name.partition(".")[0]
    why = ""
    if name in _FIXED or section in ("data", "task", "evaluation", "privacy", "targets", "seed"):
        why = " cannot be searched: it changes what scores mean, or is the job's own;"
    elif section == "strategy" and "." in name:
        why = f" is no setting of the job's strategy, {spec.strategy.name};"
    else:
        last = {full.rpartition(".")[2]: full for full in known}
        close = difflib.get_close_matches(name, [*known, *last], n=1)
        why = f" is not known{f'; is {last.get(close[0], close[0])} meant?' if close else ';'}"
    among = [full for full in known if full.partition(".")[0] == section] or known
    raise SpecError(f"--over {name}: {name}{why} expected one of {', '.join(among)}")


def _settings(spec: JobSpec) -> dict[str, FieldInfo | None]:
    """Return what can be searched: name -> its field; None for the strategy."""
    found: dict[str, FieldInfo | None] = {"strategy": None}
    for section in SECTIONS:
        for name, field in type(getattr(spec, section)).model_fields.items():
            kind = one_type(field.annotation)
            if f"{section}.{name}" not in _FIXED and (get_origin(kind) is Literal or kind in (int, float, bool, str)):
                found[f"{section}.{name}"] = field
    return found


def _read(name: str, text: str, spec: JobSpec) -> Setting:
    """Return a setting from its values' text, or with its usual ones."""
    field = _settings(spec)[name]
    kind = str if field is None else one_type(field.annotation)
    text = text or _RANGES.get(name, "")
    if not text:
        return _usual(name, kind, spec)
    if "|" in text or ".." not in text:
        return Setting(name, choices=tuple(_value(part.strip(), kind) for part in text.split("|")))
    ends, _, option = text.partition(":")
    try:
        low, high = (float(end) for end in ends.split(".."))
    except ValueError:
        raise SpecError(f"--over {name}={text}: found {ends!r}, expected a range such as 1e-4..1e-2") from None
    if kind not in (int, float):
        raise SpecError(f"--over {name}={text}: it is no number, expected its values with | between them")
    if option not in ("", "log") or not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise SpecError(f"--over {name}={text}: expected the smaller number first, and :log or nothing after the range")
    if option and low <= 0:
        raise SpecError(f"--over {name}={text}: a range by logarithm begins above 0")
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise SpecError(f"--over {name}={text}: expected whole numbers")
    return Setting(name, low=low, high=high, is_log=bool(option), is_integer=kind is int)


def _value(text: str, kind: Any) -> Value:
    """Return a choice from its text."""
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and kind in (int, float):  # YAML takes 1e-3 for text
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, int) and not isinstance(value, bool) and kind is float:
        return float(value)
    return value if isinstance(value, float | int | bool | str | None) else text


def _usual(name: str, kind: Any, spec: JobSpec) -> Setting:
    """Return a setting with the values that are usual for its kind."""
    if name == "strategy":
        return Setting(name, choices=tuple(_strategies_that_fit(spec)))
    if get_origin(kind) is Literal:
        return Setting(name, choices=get_args(kind))
    if kind is bool:
        return Setting(name, choices=(False, True))
    own = _own(spec, name)
    if kind is str or not isinstance(own, int | float) or own <= 0:
        raise SpecError(
            f"--over {name}: the job's own value is {shown(own)}, around which there is no usual range. Say which "
            f"values to try, such as {_EXAMPLE}"
        )
    if kind is int:
        return Setting(name, low=max(1, own // _WIDER_INTEGER), high=own * _WIDER_INTEGER, is_log=True, is_integer=True)
    low, high = own / _WIDER, own * _WIDER
    # A bound of the schema ends the range.
    while high > own and _refusal(spec, name, high):
        high = max(own, high / 2)
    while low < own and _refusal(spec, name, low):
        low = min(own, low * 2)
    if low == high:
        raise SpecError(f"--over {name}: nothing but {shown(own)} is allowed around the job's own value")
    return Setting(name, low=low, high=high, is_log=True)


def _strategies_that_fit(spec: JobSpec) -> Iterator[str]:
    for name in ALGORITHMS.names():
        if _refusal(spec, "strategy", name) is None:
            yield name


def _refusal(spec: JobSpec, name: str, value: Value) -> str | None:
    """Return why the job's schema refuses a value; None: it does not."""
    try:
        spec.changed(_sections({name: value}))
    except SpecError as error:
        return str(error).removeprefix("the changed job: ")
    return None


def _own(spec: JobSpec, name: str) -> Value:
    if name == "strategy":
        return spec.strategy.name
    section, _, setting = name.partition(".")
    value: Value = getattr(getattr(spec, section), setting)
    return value


def _sections(values: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    """Return values by section, as ``JobSpec.changed`` takes them."""
    sections: dict[str, dict[str, Any]] = {}
    for full, value in values.items():
        section, _, name = full.partition(".")
        sections.setdefault(section, {})[name or "name"] = value
    return sections


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the short name of each setting where it is its own, for headings."""
    last = [name.rpartition(".")[2] for name in names]
    return {full: short if last.count(short) == 1 else full for full, short in zip(names, last, strict=True)}
