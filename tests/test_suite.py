"""How the tests themselves are dealt out."""

from __future__ import annotations

import pytest

from changed import near
from dealing import interleaved


def test_tests_that_share_a_fixture_are_dealt_out_together(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", False):
        pytest.skip("only where several processes test: make test")
    # xdist names a test's group so; without one a fixture of a whole file is made once in each process.
    assert request.node.nodeid.endswith("@tests/test_suite.py")


def test_a_failed_assertion_is_explained() -> None:
    # pytest rewrites assertions where it imports tests, and workers find them imported.
    left, right = [1], [2]
    with pytest.raises(AssertionError, match=r"assert \[1\] == \[2\]"):
        assert left == right


def test_slow_tests_lie_between_the_others_and_not_at_the_end(request: pytest.FixtureRequest) -> None:
    class Test(pytest.Item):
        def runtest(self) -> None:
            pass

    def made(name: str, *markers: pytest.MarkDecorator) -> pytest.Item:
        test: pytest.Item = Test.from_parent(request.session, name=name)
        for marker in markers:
            test.add_marker(marker)
        return test

    slow, one, other = pytest.mark.slow, pytest.mark.xdist_group("one"), pytest.mark.xdist_group("other")
    fast = [made(f"fast {number}", pytest.mark.xdist_group(f"file {number}")) for number in range(6)]
    alone = [made(f"alone {number}", slow) for number in range(2)]
    shared = [made(f"shared {number}", slow, one) for number in range(2)]
    both = [made("quick", other), made("slow", slow, other)]
    names = [test.name for test in interleaved([*fast, both[0], *alone, *shared, both[1]])]
    assert names[:3] == ["shared 0", "shared 1", "fast 0"]
    assert names[-1] == "fast 5"
    assert sorted(names) == sorted(test.name for test in [*fast, *alone, *shared, *both])
    assert names.index("slow") == names.index("quick") + 1
    slow_places = [names.index(name) for name in ("alone 0", "alone 1", "quick")]
    assert all(abs(a - b) > 1 for a in slow_places for b in slow_places if a != b)


def test_tests_next_to_what_changed_are_found_nearest_first() -> None:
    tests = {
        "tests/data/test_masks.py": frozenset({"oncofed.data", "oncofed.data.masks"}),
        "tests/data/test_boxes.py": frozenset({"oncofed.data.boxes", "oncofed.data.boxes.Boxes", "synthetic"}),
        "tests/report/test_masks.py": frozenset({"oncofed.report"}),
        "tests/tasks/test_regions.py": frozenset({"oncofed.data.masks", "oncofed.data.masks.read"}),
        "tests/test_suite.py": frozenset({"dealing"}),
    }
    masks = ["tests/data/test_masks.py", "tests/tasks/test_regions.py"]
    assert near(["custom/oncofed/data/masks.py"], tests) == masks
    assert near(["custom/oncofed/data/masks.py", "tests/test_suite.py"], tests) == ["tests/test_suite.py", *masks]
    assert near(["tests/synthetic.py"], tests) == ["tests/data/test_boxes.py"]
    assert near(["custom/oncofed/data/__init__.py"], tests) == ["tests/data/test_masks.py"]
    assert near(["README.md", "custom/oncofed/job/spec.py", "jobs/a/job.yaml"], tests) == []
