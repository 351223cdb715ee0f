"""What a DICOMweb service may answer, and whom it is taken for."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from oncofed.errors import TransferError
from oncofed.hospital.archive import Series, Study
from oncofed.hospital.settings import DicomWebSettings

dicomweb = pytest.importorskip(
    "oncofed.hospital.dicomweb", reason="needs dicomweb-client: pip install 'oncofed[hospital]'"
)
_SERIES = Series(Study("1.2", "MRN-1", ""), "1.3")
_INSTANCES = 230


class _Service(ThreadingHTTPServer):
    """Answers with pages of instances, or sends requests on."""

    daemon_threads = True

    def __init__(self, page: int, onward: str = "", is_endless: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page, self.onward, self.is_endless, self.asked = page, onward, is_endless, 0

    def __enter__(self) -> _Service:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Service

    def do_GET(self) -> None:
        service, query = self.server, parse_qs(urlsplit(self.path).query)
        service.asked += 1
        if service.onward and "onward" not in self.path:
            self.send_response(307)
            self.send_header("Location", f"{service.onward}{self.path}&onward=1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0 if service.is_endless else int(query.get("offset", ["0"])[0])
        there = range(start, min(start + service.page, _INSTANCES))
        if not there:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = json.dumps([{"00080018": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in there]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Be quiet."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("page", [50, 100, 230, 5000])
def test_all_pages_are_read_however_small_they_are(page: int) -> None:
    with _Service(page) as service:
        archive = dicomweb.DicomWebArchive(DicomWebSettings(url=service.url))
        assert len(archive.instances(_SERIES)) == _INSTANCES


def test_a_page_that_comes_again_is_the_last() -> None:
    with _Service(50, is_endless=True) as service:
        archive = dicomweb.DicomWebArchive(DicomWebSettings(url=service.url))
        assert len(archive.instances(_SERIES)) == 50
        assert service.asked == 2


def test_requests_that_are_sent_on_to_another_address_are_not_followed() -> None:
    with _Service(50) as other, _Service(50, onward=other.url) as service:
        archive = dicomweb.DicomWebArchive(DicomWebSettings(url=service.url))
        with pytest.raises(TransferError, match="another host, port or scheme"):
            archive.studies({"PatientID": "MRN-1"})
        assert other.asked == 0


def test_requests_that_are_sent_on_within_the_archive_are_followed() -> None:
    with _Service(50) as service:
        service.onward = service.url
        archive = dicomweb.DicomWebArchive(DicomWebSettings(url=service.url))
        assert len(archive.instances(_SERIES)) == _INSTANCES


@pytest.mark.parametrize("names_one", [True, False])
def test_the_settings_signer_goes_before_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_one: bool
) -> None:
    ours, others = tmp_path / "ours.pem", tmp_path / "others.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(others))
    settings = DicomWebSettings(url="https://pacs.example.org/dicom-web", ca=ours if names_one else None)
    session = dicomweb.DicomWebArchive(settings)._session
    found = session.merge_environment_settings(settings.url, {}, None, None, None)
    assert found["verify"] == str(ours if names_one else others)
