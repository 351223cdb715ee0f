from __future__ import annotations

from pathlib import Path

from oncofed.rounds.events import EventLog, EventReader


def test_half_a_line_of_a_killed_process_goes_and_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "first"}\n{"kind": "ha')
    log = EventLog(path)
    disk = log._file
    with Path("/dev/full").open("wb", buffering=0) as full:
        log._file = full
        log.write("second")
        log._file = disk
    log.write("third")
    log.close()
    assert [e["kind"] for e in EventReader(path).read()] == ["first", "second", "third"]


def test_a_reader_gets_each_event_once_also_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    reader = EventReader(path)
    assert list(reader.read()) == []
    log = EventLog(path)
    log.write("round", round=1, losses={"site-1": 0.5})
    assert [e["round"] for e in reader.read()] == [1]
    with path.open("a") as file:
        file.write('{"kind": "half')
        file.flush()
        assert list(reader.read()) == []
        file.write('way"}\n')
    assert [e["kind"] for e in reader.read()] == ["halfway"]
    log.close()
    log.write("late")
    assert list(reader.read()) == []
