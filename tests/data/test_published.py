"""Sets at Zenodo from a server that answers as its API does: checksums first, each file checked, resumed."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import numpy as np
import pytest
import SimpleITK as sitk

from commands import oncofed
from oncofed.data import published
from oncofed.data.manifest import read_manifest
from oncofed.data.public import PUBLIC, get
from oncofed.errors import DataError

ONE, TWO = PUBLIC["luna16"].records
BALL = (14, 12, 8)  # voxel at the centre of the nodule of each second scan
SPACING = (0.8, 0.8, 2.0)


class Zenodo(ThreadingHTTPServer):
    """Records with files, as ``/api/records/ID`` and ``/records/ID/files/NAME`` give them."""

    records: dict[int, dict[str, bytes]]
    stated: dict[str, str]  # checksums that differ from the files'
    most: dict[str, int]  # bytes of a file after which the connection ends
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: Zenodo

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{path} {self.headers.get('Range') or ''}".strip())
        if match := re.fullmatch(r"/api/records/(\d+)", path):
            self._record(int(match[1]))
        elif match := re.fullmatch(r"/records/(\d+)/files/([^/]+)", path):
            self._file(match[2], self.server.records[int(match[1])].get(match[2]))

    def _record(self, number: int) -> None:
        files = [
            {
                "id": f"0000-{name}",
                "key": name,
                "size": len(content),
                "checksum": self.server.stated.get(name, f"md5:{hashlib.md5(content).hexdigest()}"),
                "links": {"self": f"https://zenodo.org/api/records/{number}/files/{name}/content"},
            }
            for name, content in self.server.records[number].items()
        ]
        answer = json.dumps({"id": number, "metadata": {"title": "LUNA16"}, "files": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _file(self, name: str, content: bytes | None) -> None:
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        rest = content[int(asked.removeprefix("bytes=").removesuffix("-")) :] if asked else content
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most.get(name, len(rest))])

    def log_message(self, *arguments: object) -> None: ...


def scan(folder: Path, uid: str, seed: int, flipped: bool, ball: bool) -> list[float]:
    """Write a scan as LUNA16 has them, and return where its nodule lies, in mm."""
    values = np.random.default_rng(seed).integers(-950, -850, (16, 24, 28)).astype(np.int16)
    places = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), -1)[..., ::-1]
    if ball:
        values[np.linalg.norm((places - BALL) * SPACING, axis=-1) < 4.01] = 40
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    image.SetOrigin((-195.0, -180.0, -378.0))
    if flipped:  # as some of LUNA16's scans are
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / f"{uid}.mhd"))
    return list(image.TransformIndexToPhysicalPoint(BALL))


@pytest.fixture(scope="module")
def luna(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """Return the records of a small LUNA16: a scan in each subset, a nodule in every second."""
    made = tmp_path_factory.mktemp("luna")
    rows, archives = ["seriesuid,coordX,coordY,coordZ,diameter_mm"], {}
    for number in range(10):
        subset = made / f"subset{number}"
        subset.mkdir()
        uid = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number}"
        centre = scan(subset, uid, number, flipped=number % 4 == 0, ball=number % 2 == 0)
        if number % 2 == 0:
            rows.append(",".join([uid, *map(str, centre), "8.0"]))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(subset.iterdir()):
                archive.write(file, f"{subset.name}/{file.name}")
        archives[f"subset{number}.zip"] = packed.getvalue()
    files = {"annotations.csv": ("\n".join(rows) + "\n").encode(), "candidates.csv": b"not wanted", **archives}
    return {ONE: dict([*files.items()][:9]), TWO: dict([*files.items()][9:])}


@pytest.fixture
def zenodo(luna: dict[int, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Zenodo]:
    with Zenodo(("127.0.0.1", 0), _Handler) as http:
        http.records = {number: dict(files) for number, files in luna.items()}
        http.stated, http.most, http.asked = {}, {}, []
        Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setattr(published, "ZENODO", f"http://127.0.0.1:{http.server_address[1]}")
        yield http
        http.shutdown()


def test_the_size_is_told_and_checksums_are_read_before_anything_is_fetched(zenodo: Zenodo, tmp_path: Path) -> None:
    said: list[str] = []
    asked: list[int] = []

    def say(text: str) -> None:
        said.append(text)
        asked.append(len(zenodo.asked))

    folder = get("luna16", tmp_path, say=say)
    wanted = [name for names in PUBLIC["luna16"].records.values() for name in names]
    gigabytes = sum(len(zenodo.records[n][name]) for n, names in PUBLIC["luna16"].records.items() for name in names)
    assert said == [
        f"11 of 11 files are missing: {gigabytes / 1e9:.3g} GB to fetch; checksums as {published.ZENODO} states them."
    ]
    assert asked == [2]
    assert zenodo.asked[:2] == [f"/api/records/{ONE}", f"/api/records/{TWO}"]
    assert len(zenodo.asked) == 13
    kept = published.read_checksums(tmp_path / "luna16_archives" / published.KEPT)
    assert list(kept) == wanted
    assert kept["subset3.zip"] == hashlib.md5(zenodo.records[ONE]["subset3.zip"]).hexdigest()
    assert len([*folder.glob("subset*/*.mhd")]) == len([*folder.glob("subset*/*.raw")]) == 10
    assert (folder / "annotations.csv").is_file()
    assert not (folder / "candidates.csv").exists()
    assert get("luna16", tmp_path) == folder
    assert len(zenodo.asked) == 13


def test_a_cut_download_goes_on_where_it_ended(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.most["subset1.zip"] = 1000
    with pytest.raises(DataError, match=r"subset1\.zip.* cannot be fetched .*run the command again to go on"):
        get("luna16", tmp_path)
    assert (tmp_path / "luna16_archives" / "subset1.zip.part").stat().st_size == 1000
    zenodo.most, zenodo.asked = {}, []
    said: list[str] = []
    assert get("luna16", tmp_path, say=said.append).is_dir()
    assert said[0].startswith("9 of 11 files are missing")
    assert zenodo.asked[2] == f"/records/{ONE}/files/subset1.zip bytes=1000-"
    assert not any("subset0.zip" in asked for asked in zenodo.asked)


def test_a_file_that_is_not_what_the_record_states_is_removed(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.stated["subset2.zip"] = f"md5:{'0' * 32}"
    with pytest.raises(DataError, match=r"subset2\.zip: its MD5 is .*, expected 0{32}\. It was removed"):
        get("luna16", tmp_path)
    there = {file.name for file in (tmp_path / "luna16_archives").iterdir()}
    assert there == {"annotations.csv", "subset0.zip", "subset1.zip", published.KEPT}
    assert not (tmp_path / "luna16").exists()


def test_a_record_that_states_another_checksum_later_is_refused(zenodo: Zenodo, tmp_path: Path) -> None:
    zenodo.most["subset5.zip"] = 10
    with pytest.raises(DataError, match="cannot be fetched"):
        get("luna16", tmp_path)
    zenodo.most = {}
    genuine = zenodo.records[ONE]["subset5.zip"]
    zenodo.records[ONE]["subset5.zip"] = genuine[:-1] + b"x"
    changed = hashlib.md5(zenodo.records[ONE]["subset5.zip"]).hexdigest()
    before = hashlib.md5(genuine).hexdigest()
    with pytest.raises(DataError, match=rf"states MD5 {changed} now, expected {before} as when it was first asked"):
        get("luna16", tmp_path)
    assert not (tmp_path / "luna16_archives" / "subset5.zip").exists()
    # One's own list goes before what was kept, and before what the record says.
    own = tmp_path / "mine.md5"
    lines = {**published.read_checksums(tmp_path / "luna16_archives" / published.KEPT), "subset5.zip": changed}
    own.write_text("".join(f"{md5} *{name}\n" for name, md5 in lines.items()))
    (tmp_path / "luna16_archives" / "subset5.zip.part").unlink()
    zenodo.stated["subset6.zip"] = f"md5:{'1' * 32}"
    assert get("luna16", tmp_path, checksums=own).is_dir()


def test_a_file_that_is_gone_from_the_record_is_named(zenodo: Zenodo, tmp_path: Path) -> None:
    del zenodo.records[TWO]["subset8.zip"]
    with pytest.raises(DataError, match=rf"record {TWO} .* has no file subset8\.zip, .*it has subset7\.zip, subset9"):
        get("luna16", tmp_path)
    assert zenodo.asked == [f"/api/records/{ONE}", f"/api/records/{TWO}"]


@pytest.mark.parametrize(
    ("stated", "message"), [("sha256:00", "checksum: String should match"), ("md5:12", "checksum: String should")]
)
def test_an_answer_without_checksums_is_refused(zenodo: Zenodo, tmp_path: Path, stated: str, message: str) -> None:
    zenodo.stated["subset9.zip"] = stated
    with pytest.raises(DataError, match=rf"/api/records/{TWO}: .*{message}.*--checksums FILE"):
        get("luna16", tmp_path)
    assert not any("/files/" in asked for asked in zenodo.asked)


def test_a_list_of_checksums_that_lacks_a_file_or_is_none_is_refused(zenodo: Zenodo, tmp_path: Path) -> None:
    own = tmp_path / "mine.md5"
    own.write_text(f"{'0' * 32}  subset0.zip\n")
    with pytest.raises(DataError, match=r"no line for annotations\.csv, .* they name subset0\.zip"):
        get("luna16", tmp_path / "out", checksums=own)
    own.write_text("subset0.zip\n")
    with pytest.raises(DataError, match=r"line 1 is 'subset0\.zip', expected an MD5"):
        get("luna16", tmp_path / "out", checksums=own)
    own.write_text(f"{'0' * 32}  Task09_Spleen.tar\n")
    (tmp_path / "out" / "Task09_Spleen.tar").write_bytes(b"not it")
    with pytest.raises(DataError, match=r"Task09_Spleen\.tar: its MD5 is .* expected 0{32}"):
        get("spleen", tmp_path / "out", checksums=own)


def test_a_record_that_cannot_be_reached_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "ZENODO", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"api/records/\d+ cannot be fetched .*put the files into .*luna16_archives"):
        get("luna16", tmp_path)


def test_files_put_there_with_their_checksums_need_no_network(zenodo: Zenodo, tmp_path: Path) -> None:
    archives = tmp_path / "luna16_archives"
    archives.mkdir()
    for files in zenodo.records.values():
        for name, content in files.items():
            (archives / name).write_bytes(content)
    own = tmp_path / "mine.md5"
    lines = [f"{hashlib.md5(file.read_bytes()).hexdigest()}  {file.name}\n" for file in archives.iterdir()]
    own.write_text("".join(lines))
    assert get("luna16", tmp_path, checksums=own).is_dir()
    assert zenodo.asked == []


def test_an_archive_of_a_method_that_python_lacks_says_what_to_do(zenodo: Zenodo, tmp_path: Path) -> None:
    packed = bytearray(zenodo.records[ONE]["subset4.zip"])
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = packed.find(signature)
        while start >= 0:
            packed[start + at : start + at + 2] = b"\x09\x00"  # Deflate64
            start = packed.find(signature, start + 4)
    zenodo.records[ONE]["subset4.zip"] = bytes(packed)
    with pytest.raises(DataError, match=r"subset4\.zip is compressed by a method .*7z x .* -o.*subset4,? .*again"):
        get("luna16", tmp_path)
    by_hand = tmp_path / ".luna16.unfinished" / "subset4"
    by_hand.mkdir()
    (by_hand / "scan.mhd").write_bytes(b"")
    folder = get("luna16", tmp_path)
    assert (folder / "subset4" / "scan.mhd").is_file()


def test_the_commands_of_the_card_make_a_dataset_of_it(zenodo: Zenodo, tmp_path: Path) -> None:
    """Every nodule is where its ball is, in scans of either direction; the others are known to have none."""
    workspace = ["--workspace", str(tmp_path)]
    folder = get("luna16", tmp_path / "public")
    for arguments in PUBLIC["luna16"].commands(folder):
        done = oncofed("data", *arguments, *workspace, home=tmp_path)
        assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "datasets" / "lung_nodules")
    assert manifest.labels["1"] == "nodule"
    entries = {(entry.name or "").rpartition(".")[2]: entry for entry in manifest.entries}
    assert set(entries) == {str(number) for number in range(10)}
    for number, entry in entries.items():
        if int(number) % 2:
            assert entry.boxes == []
            continue
        assert entry.boxes is not None
        (box,) = entry.boxes
        image = sitk.ReadImage(str(folder / f"subset{number}" / f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number}.mhd"))
        bright = np.argwhere(sitk.GetArrayFromImage(image) > 0)[:, ::-1]
        assert np.ceil(np.array(box.low) - 0.5).tolist() == bright.min(axis=0).tolist()
        assert np.floor(np.array(box.high) - 0.5).tolist() == bright.max(axis=0).tolist()
