"""Rounds take milliseconds here: no disk is waited for."""

from __future__ import annotations

import os
from functools import cache

import pytest

from oncofed.artifacts import provenance


@pytest.fixture(autouse=True)
def _no_waits_for_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what protects files when the power fails, and remember versions of packages."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(provenance, "version", cache(provenance.version))
