"""A real Orthanc, on loopback, for tests and benchmarks."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from oncofed.loopback import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TITLE, CALLING = "ORTHANC", "ONCOFED"
_SECONDS, _TRIES = 60.0, 5


def why_no_orthanc() -> str:
    """Return why there is no Orthanc here; empty: there is one."""
    if shutil.which("Orthanc") is None:
        return "needs Orthanc: make hospital"
    return "" if PLUGIN.is_file() else f"needs Orthanc's DICOMweb ({PLUGIN}): make hospital"


class _EndedError(AssertionError):
    """Orthanc ended as it started; with the end of its log."""


@dataclass
class Orthanc:
    """An Orthanc with an empty database, its ports on loopback.

    Attributes:
        folder: of its database and log.
        settings: besides the usual ones.
        http: port of its web server.
        dicom: port of DICOM's own protocol.
        listen: port at which images that it moves to this machine arrive.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    dicom: int = field(default_factory=free_port)
    listen: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in range(_TRIES, 0, -1):
            self._configure()
            try:
                self.start()
            except _EndedError:
                # Another program took a port since it was found free.
                if left == 1:
                    raise
                self.http, self.dicom, self.listen = free_port(), free_port(), free_port()
            else:
                break
        return self

    def _configure(self) -> None:
        database = str(self.folder / "database")
        settings = {
            "StorageDirectory": database,
            "IndexDirectory": database,
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.http,
            "HttpBindAddresses": ["127.0.0.1"],
            "DicomPort": self.dicom,
            "DicomAet": TITLE,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": {"here": [CALLING, "127.0.0.1", self.listen]},
            "OverwriteInstances": True,
            "SaveJobs": False,
            **self.settings,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")

    def __exit__(self, *exc: object) -> None:
        self.kill(signal.SIGTERM)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "log.txt").open("ab") as log:
            command = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + _SECONDS
        while not self._answers():
            if self.process.poll() is not None:
                raise _EndedError((self.folder / "log.txt").read_text(errors="replace")[-2000:])
            assert time.monotonic() < end, "Orthanc does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.call("GET", "/statistics")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(_SECONDS)

    def call(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Call Orthanc's own interface."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.loads(answer.read() or b"null")

    def add(self, files: Iterable[Path]) -> list[str]:
        """Store files; return Orthanc's name of each."""
        return [self.call("POST", "/instances", file.read_bytes())["ID"] for file in files]

    def remove(self, names: Iterable[str]) -> None:
        """Remove instances."""
        for name in names:
            self.call("DELETE", f"/instances/{name}")

    def clear(self) -> None:
        """Remove all patients."""
        for patient in self.call("GET", "/patients"):
            self.call("DELETE", f"/patients/{patient}")

    @property
    def count(self) -> int:
        """Number of instances."""
        return int(self.call("GET", "/statistics")["CountInstances"])

    def pacs(self, protocol: str, **more: Any) -> dict[str, Any]:
        """Return ``pacs.yaml`` for it: web, get or move; a test needs no room on the disk but its own."""
        more = {"keep_free_gb": 0, **more}
        if protocol == "web":
            return {"dicomweb": {"url": f"http://127.0.0.1:{self.http}/dicom-web"}, **more}
        where = {"host": "127.0.0.1", "port": self.dicom, "called": TITLE, "calling": CALLING, "retrieve": protocol}
        return {"dimse": {**where, "listen": f"127.0.0.1:{self.listen}"}, **more}


class TokenGate(ThreadingHTTPServer):
    """Lets requests with its token through to an Orthanc.

    Args:
        orthanc: behind it.
        token: that is valid; another may be set.
        lasts: requests for objects after which the token expires; None: never.
        cuts: answers with objects of which half is sent, and no more.
        tls: certificate and key in one file; None: it is not encrypted.
    """

    daemon_threads = True

    def __init__(
        self, orthanc: Orthanc, token: str, lasts: int | None = None, cuts: int = 0, tls: Path | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.orthanc, self.token, self.lasts, self.objects, self.cuts = orthanc, token, lasts, 0, cuts
        self.scheme = "https" if tls else "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> TokenGate:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *args: object) -> None:
        """Be quiet: a client may end a connection."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/dicom-web"


class _Gate(BaseHTTPRequestHandler):
    server: TokenGate

    def do_GET(self) -> None:
        gate = self.server
        is_object = "json" not in self.headers.get("Accept", "")
        if is_object:
            gate.objects += 1
            if gate.lasts is not None and gate.objects > gate.lasts:
                gate.token, gate.lasts = f"{gate.token}-renewed", None
        if self.headers.get("Authorization") != f"Bearer {gate.token}":
            self.send_error(401)
            return
        connection = http.client.HTTPConnection("127.0.0.1", gate.orthanc.http, timeout=_SECONDS)
        connection.request("GET", self.path, headers={"Accept": self.headers.get("Accept", "")})
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if is_object and gate.cuts:
            gate.cuts -= 1
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)
        connection.close()

    def log_message(self, *args: object) -> None:
        """Be quiet."""
