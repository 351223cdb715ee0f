"""Sites' last lines, as the server keeps them."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oncofed.audit import ANCHORED, Anchor, AuditLog
from oncofed.flare.security import recording
from oncofed.flare.security.recording import AnchorKeeper


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(recording, "kit_folder", lambda fl_ctx: tmp_path)
    return SimpleNamespace(get_job_id=lambda: "job")


def _anchor(number: int) -> str:
    return str(Anchor(number, f"{number:064x}"))


def _kept(folder: Path) -> list[tuple[str, str]]:
    return [(entry["who"], entry["anchor"]) for entry in AuditLog(folder).entries() if entry["what"] == ANCHORED]


def test_the_last_line_of_each_site_is_on_disk_at_the_end(tmp_path: Path, context: Any) -> None:
    keeper = AnchorKeeper()
    for number in range(1, 30):
        for site in ("east", "west"):
            keeper.keep(site, _anchor(number), context)
    keeper.keep("east", "no anchor", context)
    keeper.close()
    kept = _kept(tmp_path)
    assert dict(kept) == {"east": _anchor(29), "west": _anchor(29)}
    assert AuditLog(tmp_path).verify()[0] == []
    keeper.keep("west", _anchor(30), context)
    keeper.close()
    assert _kept(tmp_path) == [*kept, ("west", _anchor(30))]


def test_no_message_waits_for_the_disk_and_newer_lines_replace_older(
    tmp_path: Path, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun, go_on = AuditLog.write, threading.Event(), threading.Event()

    def slow(self: AuditLog, what: str, who: str | None = None, **facts: Any) -> Anchor:
        begun.set()
        assert go_on.wait(10)
        return write(self, what, who, **facts)

    monkeypatch.setattr(AuditLog, "write", slow)
    keeper = AnchorKeeper()
    keeper.keep("east", _anchor(1), context)
    assert begun.wait(10)
    for number in range(2, 6):
        keeper.keep("east", _anchor(number), context)
    assert _kept(tmp_path) == []
    go_on.set()
    keeper.close()
    assert _kept(tmp_path) == [("east", _anchor(1)), ("east", _anchor(5))]
