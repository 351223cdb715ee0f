"""Images from a real Orthanc: what arrives, what a second pull fetches, what is said and what is not."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset

from commands import Outcome
from dicoms import make_rtstruct, make_seg, make_series, make_wsi, volume
from oncofed.privacy.policy import Policy
from orthancs import Orthanc, TokenGate, why_no_orthanc
from slide_files import stained

pytest.importorskip("dicomweb_client", reason="needs dicomweb-client: pip install 'oncofed[hospital]'")
pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[hospital]'")
pytestmark = [
    pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one"),
    pytest.mark.xdist_group("orthanc"),
]
PROTOCOLS = ("web", "get", "move")
SLICES = 8
_MAIN = "import sys; from oncofed.cli.main import main; sys.argv[0] = 'oncofed'; main()"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture
def orthanc(server: Orthanc) -> Orthanc:
    server.clear()
    return server


def add_study(orthanc: Orthanc, folder: Path, patient: str, **changed: Any) -> list[Path]:
    """Store a CT of a patient; ``changed`` attributes may be functions of the slice."""

    def change(number: int, dataset: Dataset) -> None:
        dataset.AccessionNumber = f"ACC-{patient}"
        for keyword, value in changed.items():
            setattr(dataset, keyword, value)

    files = make_series(folder / patient, volume(), patient=patient, modality="CT", change=change)
    orthanc.add(files)
    return files


def write_pacs(folder: Path, settings: dict[str, Any]) -> Path:
    file = folder / "pacs.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def table(folder: Path, *cells: str, column: str = "patient_id") -> Path:
    file = folder / "cohort.csv"
    file.write_text("\n".join([column, *cells]) + "\n", encoding="utf-8")
    return file


def digests(files: list[Path]) -> set[str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def images(out: Path) -> list[Path]:
    return sorted((out / "images").rglob("*.dcm"))


def log(out: Path) -> list[dict[str, str]]:
    with (out / "pulled.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def require_anonymous(text: str) -> None:
    """Require that a text names no patient, study or doctor of these tests."""
    assert [word for word in ("Canary", "MRN-", "ACC-", "1.2.826", "19501231") if word in text] == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cohort_arrives_whole_and_a_second_pull_brings_what_is_new(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, protocol: str
) -> None:
    one = add_study(orthanc, tmp_path / "in", "MRN-1")
    two = add_study(orthanc, tmp_path / "in", "MRN-2")
    add_study(orthanc, tmp_path / "in", "MRN-3")
    pacs = write_pacs(tmp_path, orthanc.pacs(protocol, patience_minutes=0))
    out = tmp_path / "out"
    arguments = ("data", "pull", table(tmp_path, "MRN-1", "MRN-2"), "--from", pacs, "--out", out)
    first = run(*arguments)
    assert first.status == 0, first.text
    sent = {pydicom.dcmread(file).SOPInstanceUID for file in one + two}
    assert {row["instance"] for row in log(out)} == sent
    assert {pydicom.dcmread(file).SOPInstanceUID for file in images(out)} == sent
    for file in images(out):
        source = next(f for f in one + two if pydicom.dcmread(f).SOPInstanceUID == pydicom.dcmread(file).SOPInstanceUID)
        assert pydicom.dcmread(file) == pydicom.dcmread(source)
    if protocol == "web":
        assert digests(images(out)) == digests(one + two), "it is stored byte by byte"
    assert digests(images(out)) == {row["file_sha256"] for row in log(out)}
    assert stat.S_IMODE((out / "pulled.csv").stat().st_mode) == 0o600
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    require_anonymous(first.text)
    require_anonymous(" ".join(str(file.relative_to(out)) for file in images(out)))

    late = make_series(tmp_path / "late", volume(seed=3), patient="MRN-1", modality="CT")[:2]
    (gone, *_) = orthanc.add([one[0]])
    orthanc.add(late)
    orthanc.remove([gone])
    second = run(*arguments, "--json")
    values = json.loads(second.output)
    assert (values["objects"], values["vanished"], values["there"]) == (2, 1, 2 * SLICES)
    assert len(images(out)) == 2 * SLICES + 2, "what vanished stays here"
    third = json.loads(run(*arguments, "--json").output)
    assert (third["objects"], third["vanished"]) == (0, 0)


def test_what_was_pulled_is_registered(orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path) -> None:
    files = add_study(orthanc, tmp_path / "in", "MRN-1")
    mask = np.zeros(volume().shape, bool)
    mask[2:5, 3:9, 1:6] = True
    orthanc.add([make_seg(tmp_path / "seg.dcm", files, {"lesion": mask})])
    pacs, out = write_pacs(tmp_path, orthanc.pacs("web")), tmp_path / "out"
    pulled = run("data", "pull", table(tmp_path, "MRN-1"), "--from", pacs, "--out", out)
    assert pulled.status == 0, pulled.text
    registered = run("data", "register", out / "images", "--dataset", "ct", "--out", tmp_path / "ct", "--workers", "1")
    assert registered.status == 0, registered.text
    assert "ct: 1 cases" in registered.text
    assert "labels: 1 of 1 patients" in registered.text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_structure_sets_and_slides_are_registered_as_they_came(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, protocol: str
) -> None:
    files = add_study(orthanc, tmp_path / "in", "MRN-1")
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files[2:5]]
    corners = [(2, 3), (9, 3), (9, 6), (2, 6)]
    contours = [
        np.add([(0.8 * x, 0.7 * y, 0) for x, y in corners], np.array(one.ImagePositionPatient, float))
        for one in sources
    ]
    orthanc.add([make_rtstruct(tmp_path / "rtstruct.dcm", files, {"lesion": contours})])
    orthanc.add([make_wsi(tmp_path / "slide", stained(), patient="MRN-2")])
    pacs = write_pacs(tmp_path, orthanc.pacs(protocol, patience_minutes=0))
    for patient, objects, said in (("MRN-1", SLICES + 1, "labels: 1 of 1 patients"), ("MRN-2", 1, "1 cases")):
        out = tmp_path / patient
        pulled = run("data", "pull", table(tmp_path, patient), "--from", pacs, "--out", out)
        assert pulled.status == 0, pulled.text
        assert len(images(out)) == objects
        name = patient.lower()
        arguments = ("--dataset", name, "--out", tmp_path / f"{name}-dataset", "--workers", "1")
        registered = run("data", "register", out / "images", *arguments)
        assert registered.status == 0, registered.text
        assert f"{name}: 1 cases" in registered.text
        assert said in registered.text


@pytest.mark.parametrize("protocol", ["web", "get"])
def test_real_studies_arrive(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, real_data: Path, protocol: str
) -> None:
    files = sorted((real_data / "dicom").rglob("*.dcm"))
    if not files:
        pytest.skip(f"no DICOM in {real_data}")
    orthanc.add(files)
    patients = sorted({str(pydicom.dcmread(file, stop_before_pixels=True).PatientID) for file in files})
    pacs, out = write_pacs(tmp_path, orthanc.pacs(protocol)), tmp_path / "out"
    pulled = run("data", "pull", table(tmp_path, *patients), "--from", pacs, "--out", out)
    assert pulled.status == 0, pulled.text
    assert len(images(out)) == len({pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files})
    assert len(images(out)) == orthanc.count
    assert [patient for patient in patients if patient in pulled.text] == []


def test_a_query_names_modality_and_dates(orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path) -> None:
    add_study(orthanc, tmp_path / "in", "MRN-1", StudyDate="20200102")
    add_study(orthanc, tmp_path / "in", "MRN-2", StudyDate="20220102")
    orthanc.add(make_series(tmp_path / "mr", patient="MRN-4"))
    query = tmp_path / "query.yaml"
    query.write_text("modality: CT\ndates: 2021-01-01..\n", encoding="utf-8")
    pacs, out = write_pacs(tmp_path, orthanc.pacs("web")), tmp_path / "out"
    assert run("data", "pull", query, "--from", pacs, "--out", out).status == 0
    assert {str(pydicom.dcmread(file).PatientID) for file in images(out)} == {"MRN-2"}


@pytest.mark.parametrize("protocol", ["web", "get"])
def test_rows_that_need_a_look_are_told_by_their_line(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, protocol: str
) -> None:
    add_study(orthanc, tmp_path / "in", "MRN-1", AccessionNumber="ACC-TWICE")
    add_study(orthanc, tmp_path / "in", "MRN-2", AccessionNumber="ACC-TWICE")
    add_study(orthanc, tmp_path / "in", "MRN-3", PatientName="Canary^Merged")
    add_study(orthanc, tmp_path / "in", "MRN-4", PatientName="CANARY^MERGED")
    cohort = table(tmp_path, "ACC-TWICE", "ACC-NONE", "ACC-MRN-3", "ACC-MRN-4", column="Accession Number")
    pacs, out = write_pacs(tmp_path, orthanc.pacs(protocol)), tmp_path / "out"
    ended = run("data", "pull", cohort, "--from", pacs, "--out", out)
    assert ended.status == 3
    assert "1 rows (lines 2) of the table: their accession number is of several patients" in ended.text
    assert "nothing for 1 rows (lines 3)" in ended.text
    assert "1 persons" in ended.text
    assert {str(pydicom.dcmread(file).PatientID) for file in images(out)} == {"MRN-3", "MRN-4"}
    require_anonymous(ended.text)


def test_a_study_of_another_patient_is_fetched_again(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    files = add_study(orthanc, tmp_path / "in", "MRN-1")
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    pacs, out = write_pacs(tmp_path, orthanc.pacs("web")), tmp_path / "out"
    arguments = ("data", "pull", table(tmp_path, study, column="study_uid"), "--from", pacs, "--out", out)
    assert run(*arguments).status == 0
    orthanc.clear()
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.PatientID = "MRN-9"
        dataset.save_as(file)
    orthanc.add(files)
    values = json.loads(run(*arguments, "--json").output)
    assert (values["moved_studies"], values["objects"]) == (1, SLICES)
    assert {str(pydicom.dcmread(file).PatientID) for file in images(out)} == {"MRN-9"}
    assert len(images(out)) == SLICES


@pytest.mark.parametrize("protocol", ["web", "get"])
def test_objects_of_another_patient_under_the_same_study_are_not_kept(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path, protocol: str
) -> None:
    files = add_study(orthanc, tmp_path / "in", "MRN-1")
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    add_study(orthanc, tmp_path / "in", "MRN-2", StudyInstanceUID=study)
    pacs, out = write_pacs(tmp_path, orthanc.pacs(protocol, patience_minutes=0)), tmp_path / "out"
    arguments = ("data", "pull", table(tmp_path, "MRN-1"), "--from", pacs, "--out", out)
    pulled = run(*arguments, "--json")
    assert pulled.status == 0, pulled.text
    values = json.loads(pulled.output)
    assert (values["objects"], values["not_asked_for"]) == (SLICES, SLICES)
    assert {str(pydicom.dcmread(file).PatientID) for file in images(out)} == {"MRN-1"}
    assert f"{SLICES} things came" in run(*arguments).text


@pytest.mark.parametrize("is_named", [True, False])
def test_images_are_deidentified_where_the_policy_says_so(
    orthanc: Orthanc,
    run: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_named: bool,
) -> None:
    add_study(orthanc, tmp_path / "in", "MRN-1")
    add_study(orthanc, tmp_path / "in", "MRN-2", BurnedInAnnotation="YES")
    kit = tmp_path / "kit"
    (kit / "local").mkdir(parents=True)
    (kit / "startup").mkdir()
    policy = Policy.model_validate({"pacs": {"deidentify": True}})
    (kit / "local" / "policy.json").write_text(policy.model_dump_json(by_alias=True), encoding="utf-8")
    pacs, out = write_pacs(tmp_path, orthanc.pacs("web")), tmp_path / "out"
    command = ("data", "pull", table(tmp_path, "MRN-1", "MRN-2"), "--from", pacs, "--out", out)
    more: tuple[object, ...] = ("--workspace", tmp_path / "workspace")
    if is_named:
        more = ("--site", kit, *more)
    else:
        monkeypatch.chdir(kit)
    pulled = run(*command, *more)
    assert pulled.status == 0, pulled.text
    assert len(images(out)) == SLICES
    for file in images(out):
        require_anonymous(file.read_bytes().decode("latin-1").replace("1.2.826.0.1.3680043.8.498.1", ""))
        assert pydicom.dcmread(file).PatientIdentityRemoved == "YES"
    assert f"{SLICES} objects were not kept: has text burned" in pulled.text
    assert "images pulled from the archive" in (kit / "audit" / "audit.jsonl").read_text(encoding="utf-8")
    again = json.loads(run(*command, *more, "--json").output)
    assert (again["objects"], again["left_out"], again["there"]) == (0, {}, 2 * SLICES)
    monkeypatch.chdir(tmp_path)
    other = run(*command, "--workspace", tmp_path / "workspace")
    assert other.status == 2
    assert "its images are de-identified, and these would not be" in other.text


class Started:
    """A command in a process of its own, and what it prints."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self._file = folder / "printed.txt"
        command = [sys.executable, "-c", _MAIN, *map(str, arguments), "--workspace", str(folder)]
        with self._file.open("wb") as printed:
            self.process = subprocess.Popen(command, stdout=printed, stderr=printed)

    @property
    def text(self) -> str:
        return self._file.read_text(encoding="utf-8")

    def until(self, is_true: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not is_true():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.02)

    def status(self) -> int:
        return self.process.wait(600)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_archive_that_is_killed_costs_nothing(orthanc: Orthanc, tmp_path: Path, protocol: str) -> None:
    files = [file for n in range(10) for file in add_study(orthanc, tmp_path / "in", f"MRN-{n}")]
    pacs = write_pacs(tmp_path, orthanc.pacs(protocol, megabits=0.1, patience_minutes=5, connections=2))
    out = tmp_path / "out"
    cohort = table(tmp_path, *(f"MRN-{n}" for n in range(10)))
    pulling = Started(tmp_path, "data", "pull", cohort, "--from", pacs, "--out", out)
    pulling.until(lambda: len(images(out)) >= 5)
    orthanc.kill()
    try:
        pulling.until(lambda: "it is asked again" in pulling.text)
        assert len(images(out)) < len(files), "it is killed in the middle"
    finally:
        orthanc.start()
    assert pulling.status() == 0, pulling.text
    assert "the archive answers again" in pulling.text
    rows = log(out)
    assert sorted(row["instance"] for row in rows) == sorted(str(pydicom.dcmread(f).SOPInstanceUID) for f in files)
    assert digests(images(out)) == {row["file_sha256"] for row in rows}
    assert len(images(out)) == len(files)
    require_anonymous(pulling.text)


def test_answers_that_break_off_cost_nothing(orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path) -> None:
    files = [file for n in range(2) for file in add_study(orthanc, tmp_path / "in", f"MRN-{n}")]
    token = tmp_path / "token"
    token.write_text("secret\n", encoding="utf-8")
    token.chmod(0o600)
    out = tmp_path / "out"
    with TokenGate(orthanc, "secret", cuts=3) as gate:
        settings = {"url": gate.url, "token_file": "token"}
        pacs = write_pacs(tmp_path, {"dicomweb": settings, "patience_minutes": 5, "connections": 1})
        ended = run("data", "pull", table(tmp_path, "MRN-0", "MRN-1"), "--from", pacs, "--out", out)
        assert gate.cuts == 0
    assert ended.status == 0, ended.text
    assert "the archive answers again" in ended.text
    assert digests(images(out)) == digests(files)
    assert len(log(out)) == len(files)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(orthanc: Orthanc, tmp_path: Path, protocol: str) -> None:
    files = [file for n in range(6) for file in add_study(orthanc, tmp_path / "in", f"MRN-{n}")]
    out = tmp_path / "out"
    cohort = table(tmp_path, *(f"MRN-{n}" for n in range(6)))
    pacs = write_pacs(tmp_path, orthanc.pacs(protocol, megabits=0.05))
    arguments = ("data", "pull", cohort, "--from", pacs, "--out", out)
    pulling = Started(tmp_path, *arguments)
    pulling.until(lambda: len(images(out)) >= 3)
    pulling.process.send_signal(signal.SIGINT)
    assert pulling.status() == 130, pulling.text
    assert "Traceback" not in pulling.text
    assert "are kept; the same command goes on" in pulling.text
    assert 3 <= len(images(out)) < len(files)
    assert list((out / ".arriving").iterdir()) == []
    require_anonymous(pulling.text)
    write_pacs(tmp_path, orthanc.pacs(protocol))
    again = Started(tmp_path, *arguments)
    assert again.status() == 0, again.text
    assert len(log(out)) == len(images(out)) == len(files)
    require_anonymous(again.text)


def test_an_expired_token_is_told_and_a_new_one_goes_on(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    files = [file for n in range(3) for file in add_study(orthanc, tmp_path / "in", f"MRN-{n}")]
    token = tmp_path / "token"
    token.write_text("canary-secret\n", encoding="utf-8")
    token.chmod(0o600)
    cohort, out = table(tmp_path, *(f"MRN-{n}" for n in range(3))), tmp_path / "out"
    with TokenGate(orthanc, "canary-secret", lasts=1) as gate:
        settings = {"url": gate.url, "token_file": "token"}
        pacs = write_pacs(tmp_path, {"dicomweb": settings, "patience_minutes": 0, "connections": 1})
        arguments = ("data", "pull", cohort, "--from", pacs, "--out", out)
        ended = run(*arguments)
        assert ended.status == 1
        assert "does not accept what" in ended.text
        assert f"{SLICES} objects arrived and are kept" in ended.text
        assert "canary-secret" not in ended.text
        require_anonymous(ended.text)
        token.write_text(f"{gate.token}\n", encoding="utf-8")
        again = run(*arguments)
    assert again.status == 0, again.text
    assert digests(images(out)) == digests(files)


def test_a_full_disk_is_told_and_what_arrived_is_kept(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    files = make_series(tmp_path / "in", np.zeros((256, 256, 20), np.int16), patient="MRN-1", modality="CT")
    orthanc.add(files)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("needs a small file system, which only root can mount")
    try:
        pacs = write_pacs(tmp_path, orthanc.pacs("web", keep_free_gb=0, connections=2))
        arguments = ("data", "pull", table(tmp_path, "MRN-1"), "--from", pacs, "--out", small / "out")
        ended = run(*arguments)
        assert ended.status == 1
        assert "the disk is full" in ended.text
        kept = images(small / "out")
        assert 0 < len(kept) < len(files)
        assert digests(kept) <= digests(files)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert run(*arguments).status == 0
        assert digests(images(small / "out")) == digests(files)
        assert len(log(small / "out")) == len({row["instance"] for row in log(small / "out")}) == len(files)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_what_stays_free_is_not_used(orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path) -> None:
    add_study(orthanc, tmp_path / "in", "MRN-1")
    free = shutil.disk_usage(tmp_path).total / 1e9 + 1
    pacs, out = write_pacs(tmp_path, orthanc.pacs("web", keep_free_gb=free)), tmp_path / "out"
    ended = run("data", "pull", table(tmp_path, "MRN-1"), "--from", pacs, "--out", out)
    assert ended.status == 1
    assert "keep_free_gb" in ended.text


def test_files_that_were_lost_are_fetched_again(orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path) -> None:
    files = add_study(orthanc, tmp_path / "in", "MRN-1")
    pacs, out = write_pacs(tmp_path, orthanc.pacs("web")), tmp_path / "out"
    arguments = ("data", "pull", table(tmp_path, "MRN-1"), "--from", pacs, "--out", out, "--json")
    assert run(*arguments).status == 0
    one, two, *_ = images(out)
    one.unlink()
    two.write_bytes(b"")
    with (out / "pulled.csv").open("ab") as file:
        file.write(b"2026-01-01T00:00:00+00:00,kept,torn")
    values = json.loads(run(*arguments).output)
    assert (values["objects"], values["lost_files"]) == (2, 2)
    assert digests(images(out)) == digests(files)
    assert len(log(out)) == SLICES + 2


def test_nobody_there_and_a_wrong_address_are_told(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    cohort, out = table(tmp_path, "MRN-1"), tmp_path / "out"
    for settings, text in (
        ({"dicomweb": {"url": "http://127.0.0.1:9/dicom-web"}}, "the archive does not answer"),
        ({"dicomweb": {"url": f"http://127.0.0.1:{orthanc.http}/app"}}, "no DICOMweb at this address"),
        (orthanc.pacs("get") | {"dimse": orthanc.pacs("get")["dimse"] | {"port": 9}}, "the archive does not answer"),
    ):
        ended = run(
            "data", "pull", cohort, "--from", write_pacs(tmp_path, {**settings, "patience_minutes": 0}), "--out", out
        )
        assert ended.status == 1
        assert text in ended.text
        require_anonymous(ended.text)
