"""What speaks against predictions, in a few lines."""

from __future__ import annotations

from typing import Any

from oncofed.prediction.trust.summary import common_warnings, warning_lines


def _record(name: str, verdict: str = "ok", *reasons: str) -> dict[str, Any]:
    return {"name": name, "trust": {"verdict": verdict, "reasons": reasons}}


def _unsure(name: str, entropy: float) -> dict[str, Any]:
    return _record(name, "look", f"the network is unsure (entropy {entropy:.2f} of 1)")


def test_a_single_case_is_named_with_its_verdict() -> None:
    far = _record("b", "outside", "its voxels are 4 mm apart from head to foot, training had 0.917 to 1.09 mm")
    assert warning_lines([_record("a"), _unsure("c", 0.5), far, {"name": "d", "trust": None}]) == [
        ("look closely", "c: the network is unsure (entropy 0.50 of 1)"),
        (
            "not like what the model was trained on",
            "b: its voxels are 4 mm apart from head to foot, training had 0.917 to 1.09 mm",
        ),
    ]


def test_several_are_one_line_with_the_range_of_their_values() -> None:
    records = [_unsure("a", 0.57), _unsure("b", 0.5), *(_record(str(n)) for n in range(8))]
    assert warning_lines(records) == [
        ("look closely", "2 cases: the network is unsure (entropy 0.50 to 0.57 of 1): a, b")
    ]
    assert common_warnings(records) == []


def test_a_reason_of_most_cases_is_reported_once_with_a_likely_cause() -> None:
    records = [_unsure(f"case_{n}", 0.54 + n / 100) for n in range(4)] + [_record("sure")]
    words = "4 of 5 cases: the network is unsure (entropy 0.54 to 0.57 of 1); it may have been trained too briefly"
    assert warning_lines(records) == [("look closely", words)]
    assert common_warnings(records) == [f"look closely: {words}"]


def test_values_below_zero_and_names_with_digits_are_told_apart() -> None:
    reasons = ("the median of its intensities is -3.5, of T1", "the median of its intensities is -20, of T1")
    records = [_record("a", "outside", reasons[0]), _record("b", "outside", reasons[1]), *map(_record, "cdef")]
    [(_, line)] = warning_lines(records)
    assert line == "2 cases: the median of its intensities is -20 to -3.5, of T1: a, b"
