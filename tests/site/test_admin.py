"""The admin's page on its real server."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.audit import ADMITTED, LEFT, AuditLog
from oncofed.errors import AllianceError, FederationError
from oncofed.packs.approvals import read_decisions
from oncofed.packs.pack import make_pack
from oncofed.privacy.accountant import Event
from oncofed.privacy.ledger import LEDGER_FILE, Charge, Ledger, Limits
from oncofed.privacy.policy import read_policy
from oncofed.site.admin import admin_server
from oncofed.site.packs import import_pack
from synthetic import make_package

REASON = "looked at by two of us, <b>it is a network</b>"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("admin")
    spec, authority = AllianceSpec(name="tiny", sites=("east",)), Authority.new("tiny")
    made = provision(spec, folder, authority)
    for name in ("east", spec.server, spec.engineer):
        add_contents(made / name, spec, name, authority)
    log = AuditLog(made / "east")
    log.write(ADMITTED, "eng@x.org", job="j1", name="balls<script>", dataset="balls", network="unet", strategy="fedavg")
    log.write(LEFT, "eng@x.org", job="j1", task="train", bytes=2_500_000, to="server")
    return made


@pytest.fixture(scope="module")
def address(kits: Path) -> Iterator[str]:
    with admin_server(kits / "east", 0) as (address, server):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield address
        server.shutdown()
        thread.join()


class _Browser:
    """A minimal browser that keeps its cookie."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.host, self.token = parts.netloc, parts.query.removeprefix("token=")
        self.headers: dict[str, str] = {}

    def ask(
        self, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, str, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        body = urlencode(form) if form is not None else None
        if body is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request("GET" if form is None else "POST", path, body, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, answer.headers

    def log_in(self) -> None:
        status, _, headers = self.ask(f"/?token={self.token}")
        assert status == 302
        assert "HttpOnly" in headers["Set-Cookie"]
        assert "SameSite=Strict" in headers["Set-Cookie"]
        self.headers = {"Cookie": headers["Set-Cookie"].partition(";")[0], "Origin": f"http://{self.host}"}

    def form_token(self, path: str) -> str:
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', self.ask(path)[1])
        assert found
        return found[1]


@pytest.fixture
def browser(address: str) -> _Browser:
    browser = _Browser(address)
    browser.log_in()
    return browser


@pytest.mark.attack(
    "another page or user of the machine opens the admin's page, or sends it a form",
    by="the token, its cookie, the host's name, and a token in each form",
    logged="nothing is done; who opens it is in the site's audit log",
)
def test_the_page_requires_its_token_and_refuses_other_origins(address: str, browser: _Browser, kits: Path) -> None:
    stranger = _Browser(address)
    assert stranger.ask("/")[0] == 403
    assert stranger.ask("/?token=" + "x" * 43)[0] == 403
    assert stranger.ask("/?token=%C3%A4")[0] == 403
    assert stranger.ask("/policy", {"policy": "schema: 1"})[0] == 403
    assert browser.ask("/", Host="evil.example")[0] == 403
    assert browser.ask(f"/?token={browser.token}", Host="evil.example:80")[0] == 403
    form = {"policy": "networks: [unet]", "reason": REASON}
    assert browser.ask("/policy", form)[0] == 403
    right = {**form, "form_token": browser.form_token("/policy")}
    assert browser.ask("/policy", right, Origin="http://evil.example")[0] == 403
    assert browser.ask("/policy", {**right, "form_token": browser.token})[0] == 403
    policy = read_policy(kits / "east" / "local")
    assert policy is not None
    assert policy.networks is None
    assert [entry["what"] for entry in AuditLog(kits / "east").entries()].count("admin page opened") >= 1
    for path in ("/", "/policy", "/budget", "/audit"):
        headers = browser.ask(path)[2]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
    assert browser.ask("/code/../../../etc/passwd")[0] in (308, 404, 400)


def test_the_first_page_shows_jobs_and_traffic(browser: _Browser) -> None:
    status, page, _ = browser.ask("/")
    assert status == 200
    for part in ("eng@x.org", "2.5 MB", "unet, fedavg", "balls&lt;script&gt;"):
        assert part in page
    assert "<script" not in page
    assert "message left" in browser.ask("/audit?job=j1&what=left")[1]
    status, page, _ = browser.ask("/doctor")
    assert (status, "own code" in page) == (200, True)


def test_code_is_reviewed_and_decided(browser: _Browser, kits: Path, tmp_path: Path) -> None:
    pack = make_pack(make_package(tmp_path / "wide_net", "import socket\n"), kits / "engineer@oncofed.org" / "startup")
    (tmp_path / "some.pack.zip").write_bytes(pack.content)
    import_pack(kits / "east", tmp_path / "some.pack.zip")
    assert "waits: look at it" in browser.ask("/")[1]
    path = f"/code/{pack.digest}"
    page = browser.ask(path)[1]
    for part in ("the signature holds", "import socket", "network", "+from torch import nn"):
        assert part in page
    form = {"decision": "approve", "reason": "ok", "form_token": browser.form_token(path)}
    status, page, _ = browser.ask(path, form)
    assert (status, "expected a sentence" in page) == (400, True)
    assert browser.ask(path, {**form, "reason": REASON})[0] == 303
    assert read_decisions(kits / "east" / "local")[pack.digest].state == "approved"
    page = browser.ask("/")[1]
    assert "&lt;b&gt;it is a network" in page
    assert browser.ask(path, {**form, "reason": REASON, "decision": "withdraw"})[0] == 303
    assert read_decisions(kits / "east" / "local")[pack.digest].state == "withdrawn"
    assert browser.ask(path, {**form, "reason": REASON, "decision": "run"})[0] == 400
    assert browser.ask("/code/0000")[0] == 400


def test_the_policy_is_changed_with_a_reason_or_refused(browser: _Browser, kits: Path) -> None:
    form = {"policy": "networks: [unett]", "reason": REASON, "form_token": browser.form_token("/policy")}
    status, page, _ = browser.ask("/policy", form)
    assert (status, "did you mean unet?" in page) == (400, True)
    assert browser.ask("/policy", {**form, "policy": "networks: [unet]"})[0] == 303
    policy = read_policy(kits / "east" / "local")
    assert policy is not None
    assert policy.networks == ("unet",)
    assert "+networks" in browser.ask("/policy")[1]


def test_other_kits_and_a_taken_port_are_refused(kits: Path, address: str) -> None:
    with pytest.raises(AllianceError, match="this page is a site's"), admin_server(kits / "localhost", 0):
        pass
    port = urlsplit(address).port
    assert port
    with pytest.raises(FederationError, match=f"port {port} is taken"), admin_server(kits / "east", port):
        pass


def test_the_budget_page_names_jobs_and_says_when_the_ledger_is_broken(browser: _Browser, kits: Path) -> None:
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    charge = Charge("j1", "salt", "digest", Event(1.2, 0.08, 30), frozenset({"a", "b"}))
    Ledger(kits / "east").charge(charge, Limits(1e-5), "eng@x.org")
    status, page, _ = browser.ask("/budget")
    assert (status, "balls&lt;script&gt;" in page) == (200, True)
    path = kits / "east" / LEDGER_FILE
    whole = path.read_text()
    path.write_text(whole.replace('"steps": 30', '"steps": 3'))
    status, page, _ = browser.ask("/budget")
    path.write_text(whole)
    assert (status, "What patients have spent is not known" in page, "Nothing was changed" in page) == (
        200,
        True,
        False,
    )
