"""How the tests themselves are dealt out."""

from __future__ import annotations

import pytest


def test_tests_that_share_a_fixture_are_dealt_out_together(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", False):
        pytest.skip("only where several processes test: make test")
    # xdist names a test's group so; without one a fixture of a whole file is made once in each process.
    assert request.node.nodeid.endswith("@tests/test_suite.py")
