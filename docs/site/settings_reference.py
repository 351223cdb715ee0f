"""Tables of all settings, from the models that read them."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from oncofed.algorithms import algorithm_class, algorithm_names
from oncofed.alliance.site_settings import SiteSettings
from oncofed.alliance.spec import AllianceSpec
from oncofed.data.target_columns.section import TableTargets
from oncofed.job.spec import JobSpec, ProfileJobSpec
from oncofed.privacy.policy import Policy
from oncofed.records.spec import CohortSpec
from oncofed.tasks.registry import task_class, task_types
from oncofed.tasks.targets import TARGET_KINDS

_FILES: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("job.yaml", "A job that trains.", JobSpec),
    ("job.yaml of a federated profile", "A job that asks what sites' data are like.", ProfileJobSpec),
    ("alliance.yaml", "Who takes part.", AllianceSpec),
    ("site.yaml", "A site's own settings, in its kit.", SiteSettings),
    ("policy.yaml", "What a site lets in and out.", Policy),
    ("targets.yaml", "What the columns of a table state: `register --targets`.", TableTargets),
    ("cohort.yaml", "Who belongs to a cohort: `oncofed data cohort`.", CohortSpec),
)


def settings_page() -> str:
    """Return the page of all settings, as Markdown."""
    parts = ["# Settings", "Every setting with its type, its default and what it means. Unknown names are refused.", ""]
    for file, about, model in _FILES:
        parts += [f"## {file}", "", about, "", *_table(model), ""]
        if model is JobSpec:
            parts += ["### task, by type", ""]
            for name in task_types():
                parts += [f"#### Task {name}", "", *_table(_settings_of(task_class(name)), "task."), ""]
            parts += [
                "### targets, by kind",
                "",
                "Of `mask`, `objects` and `boxes` the settings are those of the task of that name.",
                "",
            ]
            for name in sorted(TARGET_KINDS.names()):
                parts += [f"#### Target {name}", "", *_table(TARGET_KINDS.find(name).Settings, "targets[]."), ""]
            parts += ["### strategy, by name", ""]
            for name in algorithm_names():
                settings = algorithm_class(name).Settings
                parts += [f"#### Strategy {name}", "", *_table(settings, "strategy."), ""]
    return "\n".join(parts)


def _settings_of(task: Any) -> type[BaseModel]:
    found: type[BaseModel] = task.Settings
    return found


def _table(model: type[BaseModel], prefix: str = "") -> list[str]:
    rows = [
        f"| `{name}` | {_plain(kind)} | {_plain(default)} | {_plain(about)} |"
        for name, kind, default, about in _rows(model, prefix)
    ]
    return ["| setting | type | default | meaning |", "|---|---|---|---|", *rows]


def _rows(
    model: type[BaseModel], prefix: str, seen: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted name, type, default, meaning) of each setting; sections after their own row."""
    for field_name, info in model.model_fields.items():
        name = prefix + (info.alias or field_name)
        inner = [kind for kind in _models(info.annotation) if kind not in seen]
        if field_name in _HEADED.get(prefix, ()):
            continue
        kind = _type(info.annotation)
        yield (
            name,
            kind,
            _default(info, bool(inner)),
            _meaning(info, field_name, inner),
        )
        for one in inner:
            at = (
                f"{name}."
                if _is_plain_section(info.annotation)
                else f"{name}[]."
                if _is_list(info.annotation)
                else f"{name}.NAME."
            )
            yield from _rows(one, at, (*seen, one))


def _meaning(info: FieldInfo, name: str, inner: Sequence[type[BaseModel]]) -> str:
    if info.description:
        return info.description
    if name in _DISCRIMINATORS and get_origin(info.annotation) is Literal:
        return "decides which of these settings follow"
    return _first_line(inner[0]) if len(inner) == 1 else ""


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of sections within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # A section by type or name has tables of its own.
        return [] if annotation.__name__ in {"TaskSettings", "AlgorithmSettings"} else [annotation]
    return list(dict.fromkeys(found for part in get_args(annotation) for found in _models(part)))


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return True
    return any(_is_list(part) for part in get_args(annotation) if get_origin(part) is not None)


def _is_plain_section(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is None:
        return True
    if origin in (Union, types.UnionType, Annotated):
        return all(_is_plain_section(part) for part in get_args(annotation))
    return not (isinstance(origin, type) and issubclass(origin, (Sequence, Mapping)))


def _type(annotation: Any) -> str:
    """Return a type as a person writes it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, (Sequence, set, frozenset)):
        inner = list(dict.fromkeys(_type(one) for one in arguments if one is not Ellipsis))
        return f"list of {' and '.join(inner)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES.get(getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation)))


# Settings that the heading says.
_HEADED = {"task.": ("type",), "strategy.": ("name",), "targets[].": ("kind",)}
_DISCRIMINATORS = ("kind", "type", "name")
_NAMES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true, false",
    "Any": "anything",
    "Path": "path",
}


def _default(info: FieldInfo, is_section: bool) -> str:
    if info.is_required():
        return "*required*"
    value = info.get_default(call_default_factory=True)
    if is_section or isinstance(value, BaseModel):
        return "" if value is not None else "null"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list, dict, frozenset)):
        return "none" if not value else f"`{list(value)}`" if not isinstance(value, dict) else f"`{value}`"
    return f"`{value}`" if value != "" else "empty"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
