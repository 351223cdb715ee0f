"""Tests of installed packages: no vulnerable versions, all digests."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

PROVISIONING = Path(__file__).parents[1] / "provisioning"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_flares_version_has_no_known_vulnerability() -> None:
    rows = re.findall(r"^\| (CVE-\d{4}-\d+) \| .+ \| ([\d.]+) \|$", (PROVISIONING / "advisories.md").read_text(), re.M)
    assert len(rows) >= 7
    here = _numbers(version("nvflare"))
    assert not [advisory for advisory, fixed in rows if here < _numbers(fixed)]


def test_every_file_that_a_site_installs_has_a_digest() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (PROVISIONING / "requirements.txt").read_text().partition("\nabsl")[2])
    assert len(entries) > 100
    assert not [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]
