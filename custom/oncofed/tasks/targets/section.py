"""The section ``targets`` of a job, as the section ``task`` that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.errors import SpecError
from oncofed.models.known import find_network
from oncofed.settings import SettingError, settings_beside
from oncofed.tasks.registry import TASK_TYPES
from oncofed.tasks.targets.base import TARGET_KINDS

# Kind of network -> the task that has its input.
TABLE_TARGETS = "table_targets"
_TYPES = {"bag": "slide_targets", "table": TABLE_TARGETS}
# Targets that a network answers for places of an image.
_OF_TARGETS = ("name", "kind", "weight")
_DENSE = {"mask": "segmentation", "objects": "objects", "boxes": "detection"}


def task_of_targets(targets: Any, task: Any, model: Any) -> dict[str, Any]:
    """Return the section ``task`` of a job that names its targets.

    One target of kind ``mask``, ``objects`` or ``boxes`` is a segmentation or a detection, whose settings it gives; a
    mask's ``regions`` may overlap. Others are learned together, of what the job's network takes: images, bags of a
    slide's tiles, or rows of a table. A mask may stand beside others: then the network draws it.

    Args:
        targets: section of the job.
        task: section of the job with further settings, or None.
        model: section of the job, or None.

    Raises:
        SettingError: objects or boxes are joined with others.
    """
    if task is not None and not isinstance(task, Mapping):
        raise SettingError(f"found {task!r}, expected settings", "task")
    more = dict(task or {})
    kinds = [target.get("kind") if isinstance(target, Mapping) else None for target in targets or ()]
    dense = [kind for kind in kinds if kind in _DENSE]
    alone = [kind for kind in dense if kind != "mask"]
    if alone and len(kinds) > 1:
        raise SettingError(
            f"a target of kind {alone[0]} is learned alone, found {len(kinds)} targets: make it another job",
            f"targets.{kinds.index(alone[0])}",
            "targets",
        )
    if dense and len(kinds) > 1:
        both = [_with_mask(target) if kind == "mask" else target for kind, target in zip(kinds, targets, strict=True)]
        return {"type": "mask_targets", **more, "targets": both}
    if dense:
        return _drawn(targets[0], more)
    return {"type": _TYPES.get(_input_kind(model), "targets"), **more, "targets": targets}


def drawn_alone(targets: Any) -> Mapping[str, Any]:
    """Return the one target that is drawn, whose settings are the task's; empty: there is no such."""
    one = targets[0] if isinstance(targets, list) and len(targets) == 1 else None
    return one if isinstance(one, Mapping) and one.get("kind") in _DENSE else {}


def settings_of_target(targets: Any, loc: tuple[str, ...]) -> list[str]:
    """Return the settings that may stand beside one of a target's; none where the target's kind is unknown.

    Args:
        targets: section of the job.
        loc: number of the target, and the names that lead to the setting.
    """
    target = targets[int(loc[0])]
    head = TARGET_KINDS.get(str(target.get("kind")))
    drawn = TASK_TYPES.get(_drawn(target, {})["type"]) if target.get("kind") in _DENSE else None
    if drawn is None:
        return settings_beside(loc[1:], head.Settings) if head else []
    found = [name for name in settings_beside(loc[1:], drawn.Settings) if name != "type"]
    return found if loc[2:] else [*_OF_TARGETS, *found]


def _drawn(target: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section ``task`` of a target that is learned alone."""
    settings = {name: value for name, value in target.items() if name not in _OF_TARGETS}
    return {"type": "regions" if "regions" in settings else _DENSE[target["kind"]], **more, **settings}


def _with_mask(target: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mask beside other targets, with its settings as those of a task of its own."""
    own = {name: target[name] for name in _OF_TARGETS if name in target}
    return {**own, "mask": _drawn(target, {})}


def _input_kind(model: Any) -> str:
    name = model.get("network") if isinstance(model, Mapping) else None
    try:
        return find_network(name, str(model.get("code") or "")).kind if isinstance(name, str) else ""
    except SpecError:  # which reading the section model reports
        return ""
