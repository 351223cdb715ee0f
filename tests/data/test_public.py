"""Public datasets from a local server: resumed, checked, registered."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from oncofed.data import public
from oncofed.data.public import PUBLIC, get
from oncofed.data.register import RegisterOptions, register
from oncofed.data.target_columns import parse_targets
from oncofed.errors import DataError
from oncofed.job.spec import read_job
from synthetic import make_site


class _Server(ThreadingHTTPServer):
    """Serves one file, cut off after ``most`` bytes."""

    content = b""
    most = 1 << 30
    asked: list[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        rest = self.server.content[start:]
        if asked and not rest:
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.most])

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    make_site(tmp_path / "made" / "Task04_Hippocampus", 4)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tmp_path / "made" / "Task04_Hippocampus", "Task04_Hippocampus")
    with _Server(("127.0.0.1", 0), _Handler) as http:
        http.asked = []
        Thread(target=http.serve_forever, daemon=True).start()
        _publish(http, monkeypatch, "hippocampus", packed.getvalue(), "Task04_Hippocampus.tar")
        yield http
        http.shutdown()


def _publish(http: _Server, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, file: str) -> None:
    http.content = content
    url = f"http://127.0.0.1:{http.server_address[1]}/{file}?download=1"
    entry = replace(PUBLIC[name], url=url, md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(public.PUBLIC, name, entry)


def test_an_archive_is_fetched_checked_and_can_be_registered(server: _Server, tmp_path: Path) -> None:
    seen: list[str] = []
    folder = get("hippocampus", tmp_path / "out", lambda what, done, total: seen.append(what))
    assert len(register(RegisterOptions(folder, "hippocampus", tmp_path / "set")).entries) == 4
    assert set(seen) >= {"fetching Task04_Hippocampus.tar", "checking Task04_Hippocampus.tar", "unpacking"}
    assert get("hippocampus", tmp_path / "out") == folder
    assert server.asked == [None]


def test_an_interrupted_download_is_resumed(server: _Server, tmp_path: Path) -> None:
    server.most = 3000
    with pytest.raises(DataError, match=r"cannot be fetched .*run the command again to go on"):
        get("hippocampus", tmp_path / "out")
    assert (tmp_path / "out" / "Task04_Hippocampus.tar.part").stat().st_size == 3000
    server.most = 1 << 30
    assert (get("hippocampus", tmp_path / "out") / "dataset.json").is_file()
    assert server.asked == [None, "bytes=3000-"]


def test_a_file_with_a_wrong_checksum_is_removed(server: _Server, tmp_path: Path) -> None:
    server.content = server.content[:-1] + b"x"
    with pytest.raises(DataError, match=r"its MD5 is .* expected .* It was removed"):
        get("hippocampus", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_network_it_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(public.PUBLIC, "spleen", replace(PUBLIC["spleen"], url="http://127.0.0.1:9/Task09_Spleen.tar"))
    with pytest.raises(DataError, match=r"put the file there yourself: .*out/Task09_Spleen.tar"):
        get("spleen", tmp_path / "out")
    with pytest.raises(DataError, match="unknown public dataset 'kidney'; known are brain_tumour, chestmnist, hippo"):
        get("kidney", tmp_path / "out")


def test_an_archive_writes_nothing_outside_its_folder(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside.txt"), io.BytesIO(b""))
    _publish(server, monkeypatch, "hippocampus", packed.getvalue(), "Task04_Hippocampus.tar")
    with pytest.raises(DataError, match="is no archive that can be unpacked"):
        get("hippocampus", tmp_path / "a" / "b")
    assert not (tmp_path / "outside.txt").exists()


def test_arrays_become_folders_of_images_with_their_splits(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 16, 16), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    _publish(server, monkeypatch, "pneumoniamnist", packed.getvalue(), "pneumoniamnist_128.npz")
    manifest = register(RegisterOptions(get("pneumoniamnist", tmp_path / "out"), "chest_xray", tmp_path / "set"))
    assert manifest.task == "classification"
    assert [len(part) for part in (manifest.training, manifest.validation, manifest.test)] == [8, 2, 4]
    assert set(manifest.labels.values()) == {"normal", "pneumonia"}


def test_findings_of_an_array_become_a_target(server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = random.integers(0, 255, (count, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 2, (count, 14))
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    _publish(server, monkeypatch, "chestmnist", packed.getvalue(), "chestmnist_64.npz")
    told = parse_targets(PUBLIC["chestmnist"].targets)
    folder = get("chestmnist", tmp_path / "out")
    manifest = register(RegisterOptions(folder, "chest_findings", tmp_path / "set", targets=told))
    assert [len(part) for part in (manifest.training, manifest.validation, manifest.test)] == [8, 2, 4]
    spec = read_job("chest_findings")
    assert set(manifest.targets["findings"].names) == set(spec.plan().supervision().targets[0].names)
    first = next(entry for entry in manifest.training if entry.source == "training/0.png")
    stated = first.targets["findings"]
    assert isinstance(stated, dict)
    assert [float(stated[name]) for name in PUBLIC["chestmnist"].findings] == list(arrays["train_labels"][0])
