"""Heads of targets and patients' keys for tests."""

from __future__ import annotations

from typing import Any

from oncofed.plugins import read_section
from oncofed.tasks.targets import TARGET_KINDS, TargetHead, TargetSettings
from oncofed.tasks.targets.base import head_of


def settings_of(kind: str, **more: Any) -> TargetSettings:
    """Return the settings of a target called ``it``."""
    found: TargetSettings = read_section(TARGET_KINDS, "kind", {"name": "it", "kind": kind, **more})
    return found


def make_head(kind: str, **more: Any) -> TargetHead[Any]:
    """Return the head of a target called ``it``."""
    return head_of(settings_of(kind, **more))


def keys(count: int) -> list[str]:
    """Return keys of so many patients."""
    return [f"p{number}" for number in range(count)]
