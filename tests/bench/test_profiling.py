"""Tests of where the time goes."""

from __future__ import annotations

import json
import time

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.profiling import Span, busy, gaps, table, write_profile

_SPANS = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), min_size=1, max_size=20).map(
    lambda pairs: sorted((Span(f"k{n}", s, s + d) for n, (s, d) in enumerate(pairs)), key=lambda span: span.start)
)


@given(_SPANS)
def test_work_and_gaps_add_up_to_the_whole(spans):
    covered = {at for span in spans for at in range(int(span.start), int(span.end))}
    assert busy(spans) == len(covered)
    whole = max(span.end for span in spans) - spans[0].start
    assert busy(spans) + sum(gap.microseconds for gap in gaps(spans)) == whole


def test_gaps_are_named_by_what_lies_around_them_longest_first():
    spans = [Span("a", 0, 10), Span("b", 12, 20), Span("c", 13, 15), Span("d", 50, 60)]
    assert [(gap.after, gap.before, gap.microseconds) for gap in gaps(spans)] == [("b", "d", 30), ("a", "b", 2)]
    assert "a  →  b" in table(spans, "GPU")
    assert table([], "GPU") == "nothing ran on the GPU"


def test_a_trace_can_be_opened_and_a_pause_is_found(tmp_path):
    one = torch.randn(300, 300)

    def program() -> None:
        one @ one
        time.sleep(0.05)
        one.sin()

    text = write_profile(program, torch.device("cpu"), tmp_path, "a step: oncofed")
    trace = json.loads((tmp_path / "a-step-oncofed.trace.json").read_text())
    assert {"aten::matmul", "aten::sin"} <= {event.get("name") for event in trace["traceEvents"]}
    assert text == (tmp_path / "a-step-oncofed.txt").read_text().rstrip()
    longest = next(line for line in text.partition("between\n")[2].splitlines())
    assert float(longest.split()[0]) >= 50
    assert "aten::matmul  →  aten::sin" in longest
