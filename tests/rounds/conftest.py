"""Rounds take milliseconds here, without waiting for a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest

from oncofed.artifacts import provenance


@pytest.fixture(autouse=True, scope="module")
def _no_waits_for_a_disk() -> Iterator[None]:
    """Leave out flushes to disk; cache package versions.

    Flushes protect files only against power failures.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(provenance, "version", cache(provenance.version))
        yield
