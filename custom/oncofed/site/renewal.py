"""A newer kit in the place of an older one, also while that one runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from oncofed.alliance.facts import KIT_FILE, KitFacts, read_facts
from oncofed.alliance.sealing import changed_files
from oncofed.alliance.site_settings import SETTINGS_FILE
from oncofed.errors import AllianceError
from oncofed.site.service import is_own

_UNFINISHED = ".renewal"
_THE_SAME = ("alliance", "participant", "kind", "role", "server", "port", "root_fingerprint")
# `oncofed site start` writes the server's anew each time: it never is as the alliance made it.
_REWRITTEN = "local/resources.json"


def renew(folder: Path, open_into: Callable[[Path], object]) -> tuple[datetime, list[str]]:
    """Put a newer kit of the same participant into a kit's folder. What the site changed of its own stays.

    A service that runs goes on with the certificate that it has, and takes the new one when no job runs. Where this is
    interrupted, doing it again mends it: the file that says whose kit it is comes last.

    Args:
        folder: the kit that is in use.
        open_into: opens the newer one into a folder.

    Returns:
        until when the new certificate holds, and which files beside ``site.yaml`` stayed the site's own.

    Raises:
        AllianceError: the newer kit is another participant's or alliance's, or does not hold longer.
    """
    old = read_facts(folder)
    unfinished = folder / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        open_into(unfinished)
        new = read_facts(unfinished)
        until = _require_successor(old, folder, new, unfinished)
        kept = _own_files(folder, old)
        _move(unfinished, folder, kept)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return until, sorted(kept - {SETTINGS_FILE})


def _require_successor(old: KitFacts, folder: Path, new: KitFacts, unfinished: Path) -> datetime:
    for what in _THE_SAME:
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


def _own_files(folder: Path, facts: KitFacts) -> set[str]:
    """Return which files of its kit a site has changed, and may."""
    changed = [problem for problem in changed_files(folder) if problem.endswith(" was changed")]
    rewritten = {_REWRITTEN} if facts.kind == "server" else set()
    return {problem.removesuffix(" was changed") for problem in changed if is_own(problem)} - rewritten


def _move(new: Path, folder: Path, kept: set[str]) -> None:
    last = new / KIT_FILE
    others = [p for p in new.rglob("*") if p.is_file() and p.relative_to(new).parts[0] != "startup" and p != last]
    for path in others:
        name = path.relative_to(new).as_posix()
        if name not in kept:
            target = folder / name
            target.parent.mkdir(exist_ok=True, mode=0o700)
            path.replace(target)
    # A folder cannot be put in another's place in one step.
    (folder / "startup").rename(new / "before")
    (new / "startup").rename(folder / "startup")
    last.replace(folder / KIT_FILE)
