from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oncofed.rounds.events import (
    PROFILE_EVENTS,
    TRAINING_EVENTS,
    Answered,
    CrossSite,
    Dropped,
    EarlyStop,
    EncoderUnknown,
    Event,
    EventLog,
    EventReader,
    Excluded,
    Failed,
    Finished,
    Harmonized,
    Incident,
    IntensitiesNotAgreed,
    Joined,
    Late,
    Lost,
    NotKept,
    NotStandardised,
    ProfileFinished,
    ProfileStarted,
    Ready,
    Refused,
    Resumed,
    Returned,
    RoundEnded,
    SiteNotKept,
    SiteProgress,
    Standardised,
    Started,
    StepsSpent,
    Stopped,
    SumFailed,
    Summed,
    TaskSent,
    TemplateNotAgreed,
    Unknown,
    Validated,
    read_event,
)

# What lines hold in addition to "time" and "kind", in order.
LINES: list[tuple[type[Event], str, dict[str, Any]]] = [
    (Started, "started", {"sites": ["a"], "rounds": 2, "steps_per_round": 3, "metric": "dice", "strategy": "fedavg"}),
    (Resumed, "resumed", {"round": 2}),
    (Joined, "joined", {"site": "a", "cases": {"train": 4}, "started": 1.5}),
    (Excluded, "excluded", {"site": "a", "reason": "no data"}),
    (EncoderUnknown, "encoder_unknown", {"site": "a"}),
    (Ready, "ready", {"seconds": 2.0, "sites": {"a": {"train": 4}}}),
    (Standardised, "standardised", {"columns": {"age": [63.0, 9.5]}}),
    (NotStandardised, "not_standardised", {"columns": "age, psa"}),
    (TemplateNotAgreed, "template_not_agreed", {"columns": "stain eosin amount"}),
    (IntensitiesNotAgreed, "intensities_not_agreed", {"columns": "intensities"}),
    (
        Harmonized,
        "harmonized",
        {"sites": {"a": {"features": [1.5, 0.1, 1.3, 1.0]}}, "patients": {"a": 9}, "constant": {"features": 0}},
    ),
    (TaskSent, "task", {"task": "train", "round": 1, "split": "validation", "sites": ["a"]}),
    (SiteProgress, "progress", {"site": "a", "phase": "training", "round": 1, "step": 2, "steps": 3, "loss": 0.5}),
    (SiteProgress, "progress", {"site": "a", "phase": "loading data"}),
    (Answered, "answer", {"site": "a", "task": "train", "round": 1}),
    (Late, "late", {"site": "a", "round": 1, "seconds": 2.0}),
    (Dropped, "dropped", {"site": "a", "task": "train"}),
    (Dropped, "dropped", {"site": "a", "task": "train", "round": 1}),
    (Dropped, "dropped", {"site": "a", "task": "train", "staleness": 7}),
    (Refused, "refused", {"site": "a", "round": 1, "reason": "not finite"}),
    (Lost, "lost", {"site": "a", "reason": "its process ended"}),
    (Returned, "returned", {"site": "a"}),
    (NotKept, "not_kept", {"round": 1, "reason": "disk full"}),
    (SiteNotKept, "site_not_kept", {"site": "a", "round": 1, "reason": "disk full"}),
    (
        Validated,
        "validation",
        {"round": 1, "mean": None, "sites": {"a": None}, "by_class": {"a": {"b": 0.5}}, "summed": None},
    ),
    (
        RoundEnded,
        "round",
        {
            "round": 1,
            "seconds": 2.0,
            "slowest_site_s": 1.0,
            "losses": {"a": 0.5},
            "cases": {"a": 4},
            "participation": {"in_time": ["a"]},
            "loss": None,
            "similarity": None,
        },
    ),
    (
        Summed,
        "summed",
        {
            "round": 1,
            "attempt": 2,
            "sites": ["a", "b", "c"],
            "lost": ["d"],
            "threshold": 3,
            "seconds": 0.2,
            "split": "",
            "scored": 3,
        },
    ),
    (SumFailed, "sum_failed", {"round": 1, "attempt": 1, "reason": "too few"}),
    (EarlyStop, "early_stop", {"round": 3, "best_round": 1}),
    (StepsSpent, "steps_spent", {"round": 3, "reason": "1 of 4 rounds had to be trained anew"}),
    (CrossSite, "cross_site", {"model": "a", "scores": {"a": 0.5}}),
    (
        Finished,
        "finished",
        {
            "best_round": 1,
            "best_validation": None,
            "test": {"a": {"mean": 0.5}},
            "personal": {},
            "cross_site": None,
            "pooled": None,
            "paired": None,
            "calibration": None,
            "attention": None,
            "summed": None,
            "gains": {},
        },
    ),
    (Stopped, "stopped", {}),
    (Failed, "failed", {"reason": "too few sites"}),
    (ProfileStarted, "started", {"sites": ["a"]}),
    (ProfileFinished, "finished", {"statistics": {"mean": {"spacing": 1.0}}, "patients": {"a": 9}}),
]


@pytest.mark.parametrize(("event", "kind", "values"), LINES)
def test_events_round_trip_with_their_keys_in_order(event: type[Event], kind: str, values: dict[str, Any]) -> None:
    made = event(time=5.0, **values)
    assert list(made.record().items()) == list({"time": 5.0, "kind": kind, **values}.items())
    assert read_event(made.record(), TRAINING_EVENTS if event in TRAINING_EVENTS else PROFILE_EVENTS) == made


def test_every_class_of_events_has_a_line_above() -> None:
    assert {event for event, _, _ in LINES} == {*TRAINING_EVENTS, *PROFILE_EVENTS}


@pytest.mark.parametrize(("event", "values"), [(e, v) for e, _, v in LINES if issubclass(e, Incident)])
def test_an_incident_is_a_sentence(event: type[Incident], values: dict[str, Any]) -> None:
    text = str(event(**values))
    assert not set("{}") & set(text)
    assert str(values.get("site", values.get("round", values.get("columns")))) in text


def test_a_line_of_another_version_is_read_as_far_as_possible() -> None:
    line = {"time": 5.0, "kind": "lost", "site": "a", "reason": "hung", "since": 3.0}
    assert read_event(line) == Lost(time=5.0, site="a", reason="hung")
    assert read_event({"time": 5.0, "kind": "paused", "site": "a"}) == Unknown(time=5.0, name="paused")
    assert read_event({"time": 5.0, "kind": "lost", "site": "a"}) == Unknown(time=5.0, name="lost")


def test_a_digest_holds_start_incidents_and_newest_reports(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write(Started(time=1.0, sites=["a"], rounds=9, steps_per_round=1))
    log.write(TaskSent(time=2.0, task="train", round=1, split="validation", sites=["a"]))
    for step in range(3):
        log.write(SiteProgress(time=3.0 + step, site="a", step=step))
    for number in range(600):
        log.write(Validated(time=10.0 + number, round=number, mean=None, sites={}))
    log.write(Answered(time=900.0, site="b", task="train", round=1))
    digest = log.digest()
    log.close()
    assert [event["kind"] for event in digest if event["kind"] != "validation"] == ["started", "progress", "answer"]
    assert [event["step"] for event in digest if event["kind"] == "progress"] == [2]
    assert [event["round"] for event in digest if event["kind"] == "validation"] == list(range(100, 600))


def test_a_partial_line_is_removed_and_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"time": 1.0, "kind": "stopped"}\n{"kind": "ha')
    log = EventLog(path)
    disk = log._file
    with Path("/dev/full").open("wb", buffering=0) as full:
        log._file = full
        log.write(Resumed(round=2))
        log._file = disk
    log.write(Failed(reason="disk full"))
    log.close()
    assert [type(event) for event in EventReader(path).read()] == [Stopped, Resumed, Failed]


def test_a_reader_gets_each_event_once_during_writing(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    reader = EventReader(path)
    assert list(reader.read()) == []
    log = EventLog(path)
    log.write(Resumed(time=1.0, round=1))
    assert list(reader.read()) == [Resumed(time=1.0, round=1)]
    with path.open("a") as file:
        file.write('{"time": 2.0, "kind": "stop')
        file.flush()
        assert list(reader.read()) == []
        file.write('ped"}\n')
    assert list(reader.read()) == [Stopped(time=2.0)]
    log.close()
    log.write(Stopped())
    assert list(reader.read()) == []
