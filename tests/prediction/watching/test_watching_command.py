"""``oncofed predict --listen`` and ``--watch`` as a site runs them.

A separate process, a real model, real peers.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, RTStructureSetStorage, SegmentationStorage

from commands import Outcome, forked, press_ctrl_c, wait_for
from dicoms import make_series
from oncofed.loopback import free_port, why_not_bound
from synthetic import JOB, make_volume
from trained import make_run

try:
    import pynetdicom
except ImportError:
    pynetdicom = None
network = pytest.mark.skipif(pynetdicom is None, reason="needs pynetdicom: pip install 'oncofed[dicom]'")
Run = Callable[..., Outcome]


def scan(folder: Path, patient: str = "CanaryMRN") -> list[Path]:
    return make_series(folder, (make_volume(3)[0] * 100).astype(np.int16), spacing=(1, 1, 1), patient=patient)


def send(files: Sequence[Path], port: int, breaks_off: bool = False) -> None:
    """Send a series as a scanner does."""
    entity = pynetdicom.AE("SCANNER")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.4")
    association = entity.associate("127.0.0.1", port, ae_title="ONCOFED")
    assert association.is_established
    assert {association.send_c_store(file).Status for file in files} == {0}
    (association.abort if breaks_off else association.release)()


def steps(out: Path) -> list[str]:
    journal = out / "watch.jsonl"
    return [json.loads(line)["step"] for line in journal.read_text().splitlines()] if journal.exists() else []


@network
@pytest.mark.slow
def test_a_series_whose_first_half_came_before_the_process_was_killed_is_predicted_once(tmp_path: Path) -> None:
    run, out, port = make_run(tmp_path / "run"), tmp_path / "out", free_port()
    files, log, later = scan(tmp_path / "scan"), tmp_path / "log", tmp_path / "later"
    listening = ("predict", run, "--out", out, "--listen", str(port), "--from", "SCANNER", "--settle", "1")
    listening = (*listening, "--workers", "1", "--workspace", tmp_path)
    with forked(*listening, log=log) as process:
        wait_for(lambda: "listens at" in log.read_text(), "the port")
        send(files[:9], port, breaks_off=True)
        wait_for(lambda: "broke off" in log.read_text(), "the association's end")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with forked(*listening, log=later) as process:
        wait_for(lambda: "waits for its rest" in later.read_text(), "the first half")
        send(files[9:], port)
        wait_for(lambda: "done" in steps(out), "the result")
        press_ctrl_c(process)
        assert process.wait(300) == 0
    told = log.read_text() + later.read_text()
    assert steps(out) == ["opened", "begun", "done"]
    (labels,) = out.glob("results/**/*_seg.nii.gz")
    assert nib.load(labels).shape == (20, 20, 20)
    assert told.count("Research only") == 2
    assert "1 done, 0 set aside" in told
    assert "Canary" not in told + (out / "watch.jsonl").read_text()


@network
def test_the_sender_of_a_series_gets_objects_with_their_purpose(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out, files = make_run(tmp_path / "run"), tmp_path / "out", scan(tmp_path / "scan")
    listening, archive, got = free_port(), free_port(), list[Dataset]()

    def store(event: Any) -> int:
        got.append(event.dataset)
        return 0

    def peers() -> None:
        try:
            wait_for(lambda: not why_not_bound("127.0.0.1", archive) and why_not_bound("127.0.0.1", listening), "port")
            send(files, listening)
            wait_for(lambda: "done" in steps(out), "the result")
            # The archive was away until now.
            entity = pynetdicom.AE("ARCHIVE")
            entity.add_supported_context(SegmentationStorage)
            entity.add_supported_context(Comprehensive3DSRStorage)
            entity.add_supported_context(RTStructureSetStorage)
            events = [(pynetdicom.evt.EVT_C_STORE, store)]
            server = entity.start_server(("127.0.0.1", archive), block=False, evt_handlers=events)
            wait_for(lambda: steps(out).count("sent") == 3, "the acknowledgements")
            server.shutdown()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("oncofed.prediction.watching.store_scu._FIRST_PAUSE", 1.0)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(peers)
        address = (
            "--listen",
            str(listening),
            "--from",
            "SCANNER",
            "--send-to",
            f"ARCHIVE@127.0.0.1:{archive}",
            "--structures",
        )
        more = ("--structures", "--settle", "0.5", "--no-page", "--workers", "1", "--workspace", tmp_path)
        outcome = run("predict", model, "--out", out, *address, *more)
        ended.result()
    assert outcome.status == 0
    first = pydicom.dcmread(files[0])
    assert {found.SOPClassUID for found in got} == {
        SegmentationStorage,
        Comprehensive3DSRStorage,
        RTStructureSetStorage,
    }
    for found in got:
        assert (found.StudyInstanceUID, found.PatientID) == (first.StudyInstanceUID, first.PatientID)
        assert "RESEARCH" in found.SeriesDescription
    (seg,) = (found for found in got if found.SOPClassUID == SegmentationStorage)
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    assert "RESEARCH" in seg.ContentLabel


def test_a_folder_is_processed_once(tmp_path: Path, run: Run) -> None:
    model, out, folder = make_run(tmp_path / "run"), tmp_path / "out", tmp_path / "in"
    scan(folder / "case")
    nib.save(nib.Nifti1Image(make_volume(1)[0], np.eye(4)), folder / "flat.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no image")
    watching = ("predict", model, "--out", out, "--watch", folder, "--once", "--settle", "0.5", "--workers", "1")
    outcome = run(*watching, "--no-page", "--json", "--workspace", tmp_path)
    events = [json.loads(line) for line in outcome.output.splitlines()]
    assert outcome.status == 1
    assert events[0]["text"].startswith("Research only")
    assert [event["event"] for event in events].count("done") == 2
    (failed,) = [event["text"] for event in events if event["event"] == "failed"]
    assert failed.startswith("broken.nii.gz is set aside: ")
    assert len(list(out.glob("results/*/cases/*/*_seg.nii.gz"))) == 2
    outcome = run(*watching, "--no-page", "--workspace", tmp_path)
    assert outcome.status == 0
    assert "0 done, 0 set aside" in outcome.text


def test_results_of_another_model_are_left_alone(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    watching = ("--out", tmp_path / "out", "--watch", folder, "--once", "--settle", "0.5", "--workspace", tmp_path)
    assert run("predict", make_run(tmp_path / "run"), *watching).status == 0
    other = make_run(tmp_path / "other", JOB.replace("seed: 3", "seed: 4"))
    outcome = run("predict", other, *watching)
    assert outcome.status == 2
    assert "holds results of another model" in outcome.text


def test_inputs_and_a_watched_folder_exclude_each_other(tmp_path: Path, run: Run) -> None:
    model = make_run(tmp_path / "run")
    for more in ((), (str(tmp_path), "--watch", str(tmp_path / "run"))):
        outcome = run("predict", model, *more, "--out", tmp_path / "out", "--workspace", tmp_path)
        assert outcome.status == 2
        assert "exactly one of them" in outcome.text
    text = run("predict", "--help").text
    assert "research only" in text
    assert "--listen" in text
