"""Attacks on a running server and its sites.

Attackers are real processes and sockets.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import ssl
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvflare.fuel.hci.client import file_transfer

from commands import program, wait_for
from oncofed.alliance.authority import Authority
from oncofed.alliance.kits import keep_storage_inside, provision, start_process
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.session import EngineerSession
from oncofed.alliance.spec import AllianceSpec
from oncofed.audit import AuditLog
from oncofed.errors import FederationError, PolicyError
from oncofed.flare.runtime.forkserver import FORK_SERVER_VARIABLE, Shared
from oncofed.flare.security.revocation import REVOKED_FILE, Revoked, revoked_file
from oncofed.job.flare import export_job
from oncofed.job.spec import parse_job
from oncofed.processes import process_environment, stop_processes
from synthetic import make_site, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]

LEAD, OTHER, LOOKS = "eng@x.org", "other@x.org", "looks@x.org"
SPEC = AllianceSpec(
    name="tiny",
    sites=("east", "west"),
    people={LEAD: {"role": "lead"}, OTHER: {"role": "lead"}, LOOKS: {"role": "member"}},
    port=free_port(),
)
AUTHORITY = Authority.new("tiny")


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAlliance]:
    """A running server with two sites."""
    folder = tmp_path_factory.mktemp("attacked")
    datasets = {"east": {"balls": make_site(folder / "east", 6, 0)}, "west": {}}
    with LocalAlliance(SPEC, folder / "alliance", datasets, folder / "logs", folder / "tmp", AUTHORITY) as alliance:
        alliance.wait_registered()
        yield alliance


@pytest.fixture
def job(tmp_path: Path) -> Path:
    file = write_job(tmp_path / "balls")
    file.write_text(file.read_text().replace("number: 2", "number: 500, quorum: 1"))
    return export_job(parse_job(file), tmp_path / "exported")


def _said(alliance: LocalAlliance) -> str:
    return (alliance._logs / "server.txt").read_text(errors="replace")


def _has_begun(alliance: LocalAlliance, job_id: str) -> bool:
    """Return whether a job's server process runs its rounds.

    Before that FLARE ends it only by force, after 10 s.
    """
    return f"run={job_id}, wf=rounds" in _said(alliance)


def _copy(kit: Path, out: Path) -> Path:
    return Path(shutil.copytree(kit, out, ignore=shutil.ignore_patterns("*.log", "*.fl", "run*")))


def _context(alliance: LocalAlliance, kit: Path | None) -> ssl.SSLContext:
    """Return TLS settings that trust the alliance.

    They show a kit's certificate, or none.
    """
    context = ssl.create_default_context(cafile=str(alliance.server_kit / "startup" / "rootCA.pem"))
    context.check_hostname = False
    if kit:
        context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    return context


def _is_answered(context: ssl.SSLContext) -> bool:
    """Return whether the server answers.

    In TLS 1.3 a refusal takes the place of its first answer.
    """
    try:
        with socket.create_connection(("localhost", SPEC.port), 5) as plain, context.wrap_socket(plain) as secured:
            secured.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            return bool(secured.recv(100))
    except (ssl.SSLError, ConnectionError):
        return False


def _made_by(authority: Authority, folder: Path, days: float = 100) -> Path:
    """Return a kit for east that another authority issued."""
    spec = SPEC.model_copy(update={"valid_days": days})
    return provision(spec, folder, authority, ["east"]) / "east"


def test_valid_certificates_are_accepted(alliance: LocalAlliance, tmp_path: Path) -> None:
    assert _is_answered(_context(alliance, alliance.kit("west")))
    assert _is_answered(_context(alliance, _made_by(AUTHORITY, tmp_path)))


@pytest.mark.attack(
    "a certificate of another alliance",
    by="mutual TLS",
    logged="the server's log",
)
def test_certificates_of_another_alliance_are_refused(alliance: LocalAlliance, tmp_path: Path) -> None:
    assert not _is_answered(_context(alliance, _made_by(Authority.new("tiny"), tmp_path)))


@pytest.mark.attack(
    "a certificate that expired",
    by="mutual TLS",
    logged="the server's log",
)
def test_expired_certificates_are_refused(alliance: LocalAlliance, tmp_path: Path) -> None:
    assert not _is_answered(_context(alliance, _made_by(AUTHORITY, tmp_path, days=-0.5)))


@pytest.mark.attack(
    "no certificate",
    by="mutual TLS",
    logged="the server's log",
)
def test_a_client_without_certificate_is_refused(alliance: LocalAlliance) -> None:
    assert not _is_answered(_context(alliance, None))


@pytest.mark.attack(
    "plain text in place of TLS",
    by="mutual TLS",
    logged="the server's log",
)
def test_plain_text_gets_no_answer(alliance: LocalAlliance) -> None:
    with socket.create_connection(("localhost", SPEC.port), 5) as plain:
        plain.sendall(b"GET /f3 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        plain.settimeout(5)
        try:
            answer = plain.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer


@pytest.mark.attack(
    "a person who may only look submits a job",
    by="FLARE's authorisation",
    logged="the server's log",
)
def test_an_observer_cannot_submit_jobs(alliance: LocalAlliance, job: Path) -> None:
    with EngineerSession(alliance.kit(LOOKS)) as engineer, pytest.raises(PolicyError, match=f"{LOOKS} may not do this"):
        engineer.submit(job)


@pytest.mark.attack(
    "an engineer stops or fetches another's job",
    by="FLARE's authorisation",
    logged="the server's log",
)
def test_another_engineers_job_cannot_be_stopped_or_downloaded(
    alliance: LocalAlliance, job: Path, tmp_path: Path
) -> None:
    with EngineerSession(alliance.kit(LEAD)) as owner, EngineerSession(alliance.kit(OTHER)) as other:
        job_id = owner.submit(job)
        wait_for(lambda: owner.status(job_id) == "RUNNING" and _has_begun(alliance, job_id), "it runs")
        with pytest.raises(PolicyError, match=f"{OTHER} may not do this"):
            other.stop(job_id)
        owner.stop(job_id)
        wait_for(lambda: owner.status(job_id).startswith("FINISHED"), "its owner stops it")
        with pytest.raises(PolicyError, match=f"{OTHER} may not do this"):
            other.download(job_id, tmp_path / "stolen")
        assert not (tmp_path / "stolen").exists() or not list((tmp_path / "stolen").rglob("*"))
    written = list(AuditLog(alliance.server_kit).entries())
    assert {"east", "west", LEAD, OTHER} <= {entry["who"] for entry in written if entry["what"] == "let in"}
    commands = [(entry["who"], entry["command"], entry["allowed"]) for entry in written if entry["what"] == "command"]
    assert (LEAD, "submit_job", True) in commands
    assert (OTHER, "abort_job", False) in commands
    assert len(commands) < 20


def _attack(what: str, kit: Path, *names: str) -> list[str]:
    """Return the outcomes of an attack with a kit's keys, under each of the names; see ``attacker.py``.

    Each is a process of its own.
    """
    attacker = Path(__file__).with_name("attacker.py").read_text()
    outcomes = []
    for name in names:
        attack = program(attacker, what, kit, name, home=kit.parent)
        assert attack.stdout, attack.stderr
        outcomes.append(attack.stdout.splitlines()[-1])
    return outcomes


def _with_key_of(kit: Path, other: Path, out: Path) -> Path:
    """Return a kit's copy with another kit's certificate and key."""
    copy = _copy(kit, out)
    for file in ("client.crt", "client.key"):
        shutil.copy(other / "startup" / file, copy / "startup" / file)
    return copy


def test_an_engineer_can_log_in(alliance: LocalAlliance) -> None:
    assert _attack("login", alliance.kit(LEAD), LEAD) == ["let in, sites: ['east', 'west']"]


@pytest.mark.attack(
    "the key of a site used as an engineer's",
    by="the server's gate",
    logged="the server's log",
)
def test_a_sites_key_cannot_log_in_as_a_person(alliance: LocalAlliance, tmp_path: Path) -> None:
    kit = _with_key_of(alliance.kit(LEAD), alliance.kit("east"), tmp_path / "kit")
    assert all(outcome.startswith("refused") for outcome in _attack("login", kit, "east", LEAD))
    assert _attack("login", alliance.kit(LEAD), LEAD) == ["let in, sites: ['east', 'west']"]


@pytest.mark.attack(
    "the key of an engineer used as a site's",
    by="the server's gate",
    logged="the server's log",
)
def test_an_engineers_key_cannot_join_as_a_site(alliance: LocalAlliance) -> None:
    (outcome,) = _attack("as_site", alliance.kit(LEAD), LEAD)
    assert outcome.startswith("refused")
    assert f"refused: {LEAD} is a person, not a site" in _said(alliance)
    assert _attack("heartbeat", alliance.kit(LEAD), LEAD) == ["let in, sites: ['east', 'west']"]


@pytest.mark.attack(
    "a submission played again",
    by="the server, which remembers its nonces",
    logged="the server's log",
)
def test_a_replayed_registration_is_refused(alliance: LocalAlliance) -> None:
    assert _attack("replay", alliance.kit(LEAD), LEAD) == ["first True, again False"]


@pytest.mark.attack(
    "a kit edited to claim another role",
    by="the role in the certificate",
    logged="the server's log",
)
def test_a_role_cannot_be_claimed(alliance: LocalAlliance, job: Path, tmp_path: Path) -> None:
    """A person's role is in the certificate, not the kit."""
    kit = _copy(alliance.kit(LOOKS), tmp_path / "kit")
    for file in kit.rglob("*.json"):
        file.write_text(file.read_text().replace('"member"', '"project_admin"'))
    with EngineerSession(kit) as engineer, pytest.raises(PolicyError, match=f"{LOOKS} may not do this"):
        engineer.submit(job)


@pytest.mark.attack(
    "a site that says it is another",
    by="the name in the certificate",
    logged="the server's log",
)
def test_a_site_cannot_take_another_sites_name(alliance: LocalAlliance, tmp_path: Path) -> None:
    kit = _with_key_of(alliance.kit("west"), alliance.kit("east"), tmp_path / "kit")
    before = len(_said(alliance))
    with _started(kit, tmp_path):
        wait_for(lambda: "authenticated as 'east' but claimed" in _said(alliance)[before:], "it is refused")


@pytest.mark.attack(
    "a thief of one site's key sets up a server",
    by="the name in the certificate",
    logged="the site's log",
)
def test_a_site_joins_only_the_alliances_server(alliance: LocalAlliance, tmp_path: Path) -> None:
    """A thief of a site's key runs a server.

    A site is directed to it, by a forged DNS entry for example.
    """
    port = free_port()
    thief = _copy(alliance.server_kit, tmp_path / "thief")
    for end in ("crt", "key"):
        shutil.copy(alliance.kit("east") / "startup" / f"client.{end}", thief / "startup" / f"server.{end}")
    victim = _copy(alliance.kit("west"), tmp_path / "victim")
    for kit in (thief, victim):
        for file in [*(kit / "startup").glob("*.json"), *(kit / "local").glob("*.json")]:
            file.write_text(file.read_text().replace(str(SPEC.port), str(port)))
    keep_storage_inside(thief)
    with _started(thief, tmp_path):
        wait_for(lambda: _listens(port), "the thief's server listens")
        with _started(victim, tmp_path):
            log = tmp_path / "victim.txt"
            refused = "authenticated as 'east' but claimed endpoint 'server'"
            wait_for(lambda: refused in log.read_text(), "the site sees who it is")
            assert "Successfully registered" not in log.read_text()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


@contextlib.contextmanager
def _started(kit: Path, folder: Path) -> Iterator[None]:
    """Run a kit's FLARE process; its output is a file."""
    mark = folder / f"tmp-{kit.name}"
    assert Shared.requests
    number = Shared.requests.fileno()  # no fork server of its own: it gets no job
    environment = {**process_environment(mark, 1), FORK_SERVER_VARIABLE: str(number)}
    with (folder / f"{kit.name}.txt").open("wb") as output:
        start_process(kit, output, environment, [number])
    try:
        yield
    finally:
        stop_processes(mark)


_NAMED = {
    "as a component": lambda config, bad: config["components"].append({"id": "x", **bad}),
    "deep in an argument": lambda config, bad: config["executors"][0]["executor"]["args"]["plan"].update(
        a=[{"b": bad}]
    ),
}


@pytest.mark.attack(
    "a job that names os.system, subprocess.Popen or builtins.eval, as a component or nested in its arguments",
    by="the list of approved classes, before anything is built",
    logged="the site's log",
)
@pytest.mark.parametrize(
    ("end", "where", "path", "argument"),
    [
        ("client", "as a component", "subprocess.getoutput", "cmd"),
        ("client", "deep in an argument", "builtins.eval", "source"),
        ("server", "as a component", "os.system", "command"),
    ],
)
def test_only_approved_classes_are_built(
    alliance: LocalAlliance, job: Path, tmp_path: Path, end: str, where: str, path: str, argument: str
) -> None:
    ran = tmp_path / "ran"
    command = f"open({str(ran)!r}, 'w')" if path.startswith("builtins") else f"touch {ran}"
    file = job / "app" / "config" / f"config_fed_{end}.json"
    config = json.loads(file.read_text())
    _NAMED[where](config, {"path": path, "args": {argument: command}})
    file.write_text(json.dumps(config))
    log = alliance._logs / ("server.txt" if end == "server" else "east.txt")
    before = len(log.read_text(errors="replace"))
    with EngineerSession(alliance.kit(LEAD)) as engineer:
        job_id = engineer.submit(job)
        wait_for(lambda: path in log.read_text(errors="replace")[before:], "it is refused")
        if end == "client":
            wait_for(lambda: _has_begun(alliance, job_id), "the server waits for sites")
        with contextlib.suppress(FederationError):
            engineer.stop(job_id)
        wait_for(lambda: engineer.status(job_id).startswith("FINISHED"), "it has ended")
    assert not ran.exists()


def _archived(members: dict[str, bytes], link: str | None = None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo("job/app/link")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, link)
    return packed.getvalue()


@pytest.mark.attack(
    "a job whose archive leads out of its folder, holds a link, or is a bomb",
    by="the server, before it unpacks anything",
    logged="the server's log",
)
@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (_archived({"job/meta.json": b"{}", "../../../outside.txt": b"x"}), "outside of the job's folder"),
        (_archived({"job/meta.json": b"{}", "/tmp/outside.txt": b"x"}), "outside of the job's folder"),
        (_archived({"job/meta.json": b"{}"}, link="/etc/passwd"), "it holds a link"),
        (_archived({"job/meta.json": b"{}", "job/app/zeros": bytes(100 << 20)}), "would unpack to 105 MB"),
    ],
    ids=["upwards", "absolute", "link", "bomb"],
)
def test_an_invalid_archive_is_not_unpacked(
    alliance: LocalAlliance, job: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes, why: str
) -> None:
    monkeypatch.setattr(file_transfer, "zip_directory_to_file", lambda root, name, out: Path(out).write_bytes(archive))
    with EngineerSession(alliance.kit(LEAD)) as engineer, pytest.raises(FederationError, match=why):
        engineer.submit(job)
    assert why in _said(alliance)
    assert not list(alliance.server_kit.parents[2].rglob("outside.txt"))


@pytest.mark.attack(
    "the key of an engineer that was stolen, after it was revoked",
    by="the alliance's signed list, in force within seconds; one that nobody signed changes nothing",
    logged="the server's log",
)
def test_a_revoked_key_is_refused(alliance: LocalAlliance, job: Path) -> None:
    path = alliance.server_kit / "local" / REVOKED_FILE
    forged = Revoked(1, frozenset({LEAD}))
    path.write_bytes(revoked_file(forged, Authority.new("tiny").sign(forged.signed_part())))
    wait_for(lambda: "not signed by this alliance" in _said(alliance), "the forged list is told")
    with EngineerSession(alliance.kit(LEAD)) as engineer:
        engineer.stop(engineer.submit(job))
    with EngineerSession(alliance.kit(OTHER)) as thief:
        revoked = Revoked(2, frozenset({OTHER}))
        path.write_bytes(revoked_file(revoked, AUTHORITY.sign(revoked.signed_part())))
        wait_for(lambda: f"{OTHER} is revoked" in _said(alliance), "it is revoked")
        with pytest.raises(PolicyError, match="is revoked by the alliance"):
            thief.submit(job)
