"""Settings in YAML files, validated strictly.

Each mistake is reported with its line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from oncofed.errors import SpecError

Lines = dict[tuple[str, ...], int]
_log = logging.getLogger(__name__)
# A found value is shown up to this length.
_LONGEST_SHOWN = 200


class StrictModel(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class RenamedSettings(StrictModel):
    """Base of a section with renamed settings.

    The old name is read for one release, with a warning.

    Attributes:
        renamed: former name -> present one.
        section: in which the file has them, for messages.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    section: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _take_former_names(cls, values: Any) -> Any:
        found = {former: cls.renamed[former] for former in cls.renamed if isinstance(values, dict) and former in values}
        for former, present in found.items():
            if present in values:
                raise ValueError(f"{former} is {present} under its former name: give one of them")
            names = f"{cls.section}.{former}", f"{cls.section}.{present}"
            _log.warning("%s is called %s now; the next release does not know the former name", *names)
        return {found.get(name, name): value for name, value in values.items()} if found else values


class SettingError(ValueError):
    """Settings that do not fit together.

    Raised by a validator of the model that holds them.

    Args:
        problem: what is wrong with the first of them.
        places: their dotted names below that model, the one to change first.
    """

    def __init__(self, problem: str, *places: str) -> None:
        super().__init__(f"{places[0]}: {problem}")
        self.problem, self.places = problem, places


Settings = TypeVar("Settings", bound=StrictModel)
# Maps (model, location of a problem in pydantic's words) to those in the file.
Placed = Callable[[type[StrictModel], tuple[str, ...]], tuple[type[StrictModel], tuple[str, ...]]]


def read_yaml(
    file: Path, example: str, never_empty: Mapping[tuple[str, ...], str] | None = None
) -> tuple[dict[str, Any], Lines]:
    """Read a file's settings and their lines.

    Args:
        file: to read.
        example: a valid setting, for the error message.
        never_empty: settings after whose name something must stand -> what to write. YAML reads nothing as null, which
            is what switches such a section off.

    Raises:
        SpecError: unreadable, not YAML, no settings, a duplicate key, or nothing where something must stand.
    """
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{file}{line}: not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(values, dict):
        raise SpecError(f"{file}:1: found {type(values).__name__}, expected settings such as '{example}'")
    lines: Lines = {}
    _collect_lines(root, (), lines, file)
    for at, advice in (never_empty or {}).items():
        if _is_empty(root, at):
            raise SpecError(f"{file}:{lines[at]}: {'.'.join(at)}: found nothing after it; {advice}")
    return values, lines


def first_problem(error: ValidationError) -> str:
    """Return location and message of the first mistake.

    For files written by programs.
    """
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def validated(
    kind: type[Settings],
    values: Mapping[str, Any],
    where: str,
    lines: Lines,
    whole: str,
    placed: Placed = lambda kind, loc: (kind, loc),
    explained: Callable[[Any, tuple[str, ...]], str | None] = lambda problem, loc: None,
) -> Settings:
    """Validate settings as a model.

    Args:
        kind: the model.
        values: by name.
        where: the file's name.
        lines: line of each setting.
        whole: name of the content, for a problem without a single setting.
        placed: removes the names of unions that pydantic adds to the location of a problem.
        explained: returns a better message for a problem, or None.

    Raises:
        SpecError: one line for each mistake.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        messages = (_explain(problem, where, lines, kind, whole, placed, explained) for problem in error.errors())
        raise SpecError("\n".join(messages)) from None


def _is_empty(node: yaml.Node | None, at: tuple[str, ...]) -> bool:
    """Return whether a setting has a name and nothing after it; null written out is something."""
    for name in at:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for key, value in pairs if str(key.value) == name), None)
    return isinstance(node, yaml.ScalarNode) and not node.value and not node.style


def _collect_lines(node: yaml.Node | None, at: tuple[str, ...], lines: Lines, file: Path) -> None:
    if node is None:
        return
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise SpecError(f"{file}:{line}: {'.'.join((*at, name))} is given twice, first on line {seen[name]}")
            seen[name] = line
            inner = (*at, name)
            lines[inner] = line
            _collect_lines(value, inner, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*at, str(index)), lines, file)


def _explain(
    problem: Any,
    where: str,
    lines: Lines,
    kind: type[StrictModel],
    whole: str,
    placed: Placed,
    explained: Callable[[Any, tuple[str, ...]], str | None],
) -> str:
    loc = tuple(str(part) for part in problem["loc"] if part != "[key]")
    model, inside = kind, loc
    model, loc = placed(kind, loc)
    inside = loc if model is kind else loc[1:]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return _explain_place(cause, loc, where, lines)
    line, setting = _line(".".join(loc), lines), ".".join(loc) or whole
    better = explained(problem, loc)
    if better:
        return f"{where}{line}: {better}"
    if problem["type"] == "extra_forbidden":
        beside = ", ".join(settings_beside(inside, model))
        return f"{where}{line}: unknown setting {setting}{f'; allowed here: {beside}' if beside else ''}"
    if problem["type"] == "missing":
        return f"{where}{line}: {setting} is missing"
    if problem["type"] == "model_type" and (section := _section(inside, model)):
        return f"{where}{line}: {setting}: found {_shortened(repr(problem['input']))}; {_how_to_write(section)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem.get("input")
    sections = found if isinstance(found, list | tuple) else [found]
    shown = "" if any(isinstance(one, dict | StrictModel) for one in sections) else f"found {_shortened(repr(found))}; "
    return f"{where}{line}: {setting}: {shown}{message}"


def _explain_place(error: SettingError, loc: tuple[str, ...], where: str, lines: Lines) -> str:
    """Return the message for settings that do not fit together.

    Its line is that of the first of them that the file has.
    """
    places = [".".join((*loc, place)) for place in error.places]
    given = {".".join(at) for at in lines}
    line = _line(next((place for place in places if place in given), places[0]), lines)
    return f"{where}{line}: {places[0]}: {error.problem}"


def _line(setting: str, lines: Lines) -> str:
    """Return a colon and the line of a setting.

    Of one that is missing, the line of its section; nothing without a file.
    """
    # By dotted names, since those of sites and people have dots too.
    by_name = {".".join(at): line for at, line in lines.items()}
    while setting and setting not in by_name:
        setting = setting.rpartition(".")[0]
    return f":{by_name[setting]}" if setting in by_name else ""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def settings_beside(loc: tuple[str, ...], kind: type[StrictModel]) -> list[str]:
    """Return the settings of the section that one at a location is in; none where it is one of several."""
    model = _section(loc[:-1], kind)
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _section(loc: tuple[str, ...], kind: type[StrictModel]) -> type[BaseModel] | None:
    """Return the model of the section at a location; None where it is none, or one of several."""
    model: Any = kind
    for part in loc:
        model = _inner(model, part)
    return model if hasattr(model, "model_fields") else None


def _inner(model: Any, part: str) -> Any:
    """Return the model of a section.

    If it maps names to entries, or lists them, the model of an entry.
    """
    fields = getattr(model, "model_fields", None)
    if fields is not None:
        return one_type(getattr(fields.get(part), "annotation", None))
    arguments = [one for one in get_args(model) if one is not Ellipsis]
    return one_type(arguments[-1]) if arguments else None


def one_type(annotation: Any) -> Any:
    """Return the type that is meant, without what is noted beside it, and without None."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        arguments = get_args(annotation)
        if get_origin(annotation) is not Annotated:
            arguments = tuple(one for one in arguments if one is not NoneType)
            if len(arguments) > 1:
                return None
        annotation = arguments[0]
    return annotation


def _how_to_write(section: type[BaseModel]) -> str:
    """Return how a section is written."""
    names = {field.alias or name: field for name, field in section.model_fields.items()}
    required = [name for name, field in names.items() if field.is_required()]
    if required:
        others = ", ".join(name for name in names if name not in required)
        return f"expected a section with {' and '.join(required)}" + (f"; it may have {others}" if others else "")
    first = next((f" or {{{name}: {field.default}}}" for name, field in names.items() if field.default is not None), "")
    return f"write {{}}{first}"
