"""Replace a kit, even while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from oncofed.alliance.facts import KIT_FILE, KitFacts, read_facts
from oncofed.alliance.sealing import changed_files
from oncofed.alliance.site_settings import SETTINGS_FILE
from oncofed.errors import AllianceError
from oncofed.site.service import is_site_file

_UNFINISHED = ".renewal"
_UNCHANGED = ("alliance", "participant", "kind", "role", "server", "port", "root_fingerprint")
# `oncofed site start` rewrites the server's file, so it always differs from what the alliance signed.
_REWRITTEN = "local/resources.json"


def renew(folder: Path, open_into: Callable[[Path], object]) -> tuple[datetime, list[str]]:
    """Replace a kit by a newer one.

    The site's changes are kept.

    A running service keeps its certificate until no job runs, then takes the new one. ``kit.json`` is written last, so
    that an interrupted renewal can be repeated.

    Args:
        folder: the kit in use.
        open_into: opens the newer kit into a folder.

    Returns:
        expiry of the new certificate, and the site's changed files other than ``site.yaml``, which were kept.

    Raises:
        AllianceError: the newer kit is of another participant or alliance, or expires earlier.
    """
    old = read_facts(folder)
    unfinished = folder / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        open_into(unfinished)
        new = read_facts(unfinished)
        until = _require_successor(old, folder, new, unfinished)
        kept = _site_files(folder, old)
        _move(unfinished, folder, kept)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return until, sorted(kept - {SETTINGS_FILE})


def _require_successor(old: KitFacts, folder: Path, new: KitFacts, unfinished: Path) -> datetime:
    for what in _UNCHANGED:
        if getattr(new, what) != getattr(old, what):
            raise AllianceError(
                f"this kit has {what} {getattr(new, what)}, that in {folder} has {getattr(old, what)}: nothing was "
                "changed. Open it into a folder of its own: oncofed site open FILE"
            )
    before, after = old.certificate(folder).not_valid_after_utc, new.certificate(unfinished).not_valid_after_utc
    if after < before:
        raise AllianceError(
            f"its certificate holds until {after:%Y-%m-%d}, the one in {folder} until {before:%Y-%m-%d}: nothing was "
            "changed"
        )
    return after


def _site_files(folder: Path, facts: KitFacts) -> set[str]:
    """Return the site's changed files that it may change."""
    changed = [problem for problem in changed_files(folder) if problem.endswith(" was changed")]
    rewritten = {_REWRITTEN} if facts.kind == "server" else set()
    return {problem.removesuffix(" was changed") for problem in changed if is_site_file(problem)} - rewritten


def _move(new: Path, folder: Path, kept: set[str]) -> None:
    last = new / KIT_FILE
    others = [p for p in new.rglob("*") if p.is_file() and p.relative_to(new).parts[0] != "startup" and p != last]
    for path in others:
        name = path.relative_to(new).as_posix()
        if name not in kept:
            target = folder / name
            target.parent.mkdir(exist_ok=True, mode=0o700)
            path.replace(target)
    # A folder cannot replace another in one step.
    (folder / "startup").rename(new / "before")
    (new / "startup").rename(folder / "startup")
    last.replace(folder / KIT_FILE)
