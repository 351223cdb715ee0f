"""Backups: a machine is lost, and put back on another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyrage
import pytest

from commands import left_running, oncofed, started, wait_for
from oncofed.alliance import backup
from oncofed.alliance.authority import Authority
from oncofed.alliance.backup import back_up, new_key, restore
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import provision
from oncofed.alliance.sealing import sign_folder
from oncofed.alliance.spec import AllianceSpec
from oncofed.audit import ANCHORED, LEFT, RESTORED, AuditLog
from oncofed.client.secure_aggregation import SUMS_FILE
from oncofed.errors import AllianceError, PolicyError
from oncofed.loopback import free_port
from oncofed.privacy.accountant import Event
from oncofed.privacy.ledger import Charge, Ledger, Limits
from oncofed.site.auditing import exported_anchors
from oncofed.site.service import is_connected, service_state


@pytest.fixture
def kits(tmp_path: Path) -> dict[str, Path]:
    """Open kits of a server and a site."""
    spec, authority = AllianceSpec(name="tiny", sites=("east",), port=free_port()), Authority.new("tiny")
    folder = provision(spec, tmp_path / "alliance", authority)
    for name in ("east", spec.server):
        add_contents(folder / name, spec, name, authority)
        sign_folder(folder / name, authority)
    return {kit.name: kit for kit in folder.iterdir()}


def _content(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] != "run"
    )
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o700) for path in files}


def test_a_kit_comes_back_as_it_was(kits: dict[str, Path], tmp_path: Path) -> None:
    site, key = kits["east"], tmp_path / "key"
    AuditLog(site).write(LEFT, "eng@x.org", job="j1", bytes=10)
    (site / "oncofed" / "j1").mkdir(parents=True)
    (site / "oncofed" / "j1" / "model.safetensors").write_bytes(os.urandom(3 << 20))
    (site / "run").mkdir(exist_ok=True)
    (site / "run" / "job.json").write_text("{}")
    (site / "local" / "link").symlink_to("/etc/passwd")
    before = _content(site)
    made = back_up(site, tmp_path / "out" / "east.age", [new_key(key)])
    assert (made.kind, made.participant, made.audit.partition(":")[0]) == ("site", "east", "1")
    sealed = (tmp_path / "out" / "east.age").read_bytes()
    assert sealed.startswith(b"age-encryption.org/v1")
    assert b"BEGIN" not in sealed
    assert {path.stat().st_mode & 0o777 for path in (key, tmp_path / "out" / "east.age")} == {0o600}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["east.age"]
    assert not list(site.parent.glob(".*")), "no copy is left"
    again = tmp_path / "other" / "east"
    assert restore(tmp_path / "out" / "east.age", again, key) == made
    after = _content(again)
    del before["local/link"]
    assert {name: one for name, one in after.items() if not name.startswith("audit/")} == {
        name: one for name, one in before.items() if not name.startswith("audit/")
    }
    assert again.stat().st_mode & 0o777 == 0o700
    log = AuditLog(again)
    assert [entry["what"] for entry in log.entries()] == [LEFT, RESTORED]
    assert log.verify()[0] == []


def test_each_of_several_keys_opens_it_and_no_other(kits: dict[str, Path], tmp_path: Path) -> None:
    recipients = [new_key(tmp_path / name) for name in ("one", "two")]
    new_key(tmp_path / "three")
    back_up(kits["east"], tmp_path / "b.age", recipients)
    for name in ("one", "two"):
        restore(tmp_path / "b.age", tmp_path / f"by-{name}", tmp_path / name)
    with pytest.raises(AllianceError, match="does not open it"):
        restore(tmp_path / "b.age", tmp_path / "by-three", tmp_path / "three")
    assert not (tmp_path / "by-three").exists()
    with pytest.raises(AllianceError, match=r"exists\. Backups that it opens would be lost"):
        new_key(tmp_path / "one")


@pytest.mark.parametrize("spoil", ["cut", "flipped", "empty", "no backup", "another archive"])
def test_a_spoiled_file_puts_nothing_back(kits: dict[str, Path], tmp_path: Path, spoil: str) -> None:
    recipient = new_key(tmp_path / "key")
    back_up(kits["east"], tmp_path / "b.age", [recipient])
    content = bytearray((tmp_path / "b.age").read_bytes())
    if spoil == "cut":
        content = content[:-1000]
    elif spoil == "flipped":
        content[len(content) // 2] ^= 1
    elif spoil == "empty":
        content = bytearray()
    else:
        inside = b"hello" if spoil == "no backup" else b"\0" * 10240
        content = bytearray(pyrage.encrypt(inside, [pyrage.x25519.Recipient.from_str(recipient)]))
    (tmp_path / "b.age").write_bytes(content)
    with pytest.raises(AllianceError, match=r"b\.age"):
        restore(tmp_path / "b.age", tmp_path / "back", tmp_path / "key")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


@pytest.mark.attack(
    "somebody who knows the recipient hands over a backup whose files lie outside of the folder",
    by="names are checked before anything is written",
    logged="nothing is put back; the command says which name",
)
@pytest.mark.parametrize("name", ["files/../../x", "/etc/x", "files", "other/x"])
def test_a_backup_writes_nothing_outside_of_its_folder(
    kits: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = backup._add

    def renamed(tar: object, entry: str, *more: object) -> None:
        whole(tar, name if entry == "files/site.yaml" else entry, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(backup, "_add", renamed)
    back_up(kits["east"], tmp_path / "b.age", [new_key(tmp_path / "key")])
    with pytest.raises(AllianceError, match="outside of its folder"):
        restore(tmp_path / "b.age", tmp_path / "in" / "back", tmp_path / "key")
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == []


def test_an_older_backup_is_not_written_over_a_newer_state(kits: dict[str, Path], tmp_path: Path) -> None:
    AuditLog(kits["east"]).write(LEFT, "eng@x.org", job="j1", bytes=10)
    back_up(kits["east"], tmp_path / "b.age", [new_key(tmp_path / "key")])
    with pytest.raises(AllianceError, match=r"It holds east's kit, whose audit log has 1 lines"):
        restore(tmp_path / "b.age", kits["east"], tmp_path / "key")
    with pytest.raises(AllianceError, match="a backup replaces none"):
        back_up(kits["east"], tmp_path / "b.age", [new_key(tmp_path / "key2")])
    with pytest.raises(AllianceError, match="lies in what is backed up"):
        back_up(kits["east"], kits["east"] / "c.age", [new_key(tmp_path / "key3")])
    with pytest.raises(AllianceError, match="no age recipient"):
        back_up(kits["east"], tmp_path / "c.age", ["ssh-ed25519 AAAA"])
    with pytest.raises(AllianceError, match="--new-key"):
        back_up(kits["east"], tmp_path / "c.age", [])


def test_a_backup_of_the_future_is_refused(
    kits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "SCHEMA", 2)
    back_up(kits["east"], tmp_path / "b.age", [new_key(tmp_path / "key")])
    monkeypatch.undo()
    with pytest.raises(AllianceError, match="in a form that this version does not know"):
        restore(tmp_path / "b.age", tmp_path / "back", tmp_path / "key")


def test_files_that_change_meanwhile_fit_together(kits: dict[str, Path], tmp_path: Path) -> None:
    """Two files are replaced one after the other, and a log grows: the backup has a pair, and whole lines."""
    site, stop = kits["east"], threading.Event()
    folder = site / "oncofed" / "j1"
    folder.mkdir(parents=True)

    def write() -> None:
        number = 0
        while not stop.is_set():
            for name in ("a", "b"):
                (folder / f"{name}.new").write_text(str(number))
                (folder / f"{name}.new").replace(folder / name)
            AuditLog(site).write(LEFT, "eng@x.org", job="j1", bytes=number)
            number += 1
            stop.wait(0.3)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for((folder / "b").exists, "it writes")
        recipient = new_key(tmp_path / "key")
        for number in range(4):
            back_up(site, tmp_path / f"{number}.age", [recipient])
            restore(tmp_path / f"{number}.age", tmp_path / str(number), tmp_path / "key")
            state = tmp_path / str(number) / "oncofed" / "j1"
            assert int((state / "a").read_text()) - int((state / "b").read_text()) in (0, 1)
            assert AuditLog(tmp_path / str(number)).verify()[0] == []
    finally:
        stop.set()
        thread.join()


def test_a_backup_of_a_site_that_reveals_once_keeps_it_out_of_the_jobs_sums(
    kits: dict[str, Path], tmp_path: Path
) -> None:
    state = kits["east"] / "oncofed" / "j1" / SUMS_FILE
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    back_up(kits["east"], tmp_path / "b.age", [new_key(tmp_path / "key")])
    restore(tmp_path / "b.age", tmp_path / "back", tmp_path / "key")
    with pytest.raises(ValueError, match="Expecting value"):  # as that of a job whose state is broken: it stays out
        json.loads((tmp_path / "back" / "oncofed" / "j1" / SUMS_FILE).read_text())


def test_a_missing_backup_is_named(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    with pytest.raises(AllianceError, match="is missing, or no file"):
        restore(tmp_path / "missing.age", tmp_path / "back", tmp_path / "key")


def test_a_command_that_is_stopped_leaves_nothing(kits: dict[str, Path], tmp_path: Path) -> None:
    big = kits["east"] / "oncofed" / "j1" / "model.safetensors"
    big.parent.mkdir(parents=True)
    with big.open("wb") as file:
        file.truncate(3 << 30)  # a sparse file: some seconds to encrypt
    out, key = tmp_path / "b.age", tmp_path / "key"
    with started("site", "backup", out, "--folder", kits["east"], "--new-key", key, log=tmp_path / "log") as process:
        wait_for(out.with_name("b.age.unfinished").exists, "it writes")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("b.age", "key"))] == []
    assert list(kits["east"].glob(".backup.*")) == []
    # Of one that was killed the next one removes the links.
    (kits["east"] / ".backup.999999999.x").mkdir()
    big.unlink()
    back_up(kits["east"], out, [new_key(key)])
    assert list(kits["east"].glob(".backup.*")) == []


def _charge(job: str) -> Charge:
    return Charge(job, "salt", "digest", Event(1.2, 0.08, 30), frozenset({"a", "b"}))


def test_no_patient_has_budget_anew_because_of_a_backup(kits: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    Ledger(kits["east"]).charge(_charge("j1"), Limits(1e-5), "eng@x.org")
    back_up(kits["east"], tmp_path / "b.age", [new_key(tmp_path / "key")])
    AuditLog(kits["east"]).write(LEFT, "eng@x.org", job="j2", bytes=10)  # what the backup does not know
    later = AuditLog(kits["east"]).write(LEFT, "eng@x.org", job="j2", bytes=10)
    again, anchors, server = tmp_path / "again", tmp_path / "anchors.json", AuditLog(kits["localhost"])
    server.write(ANCHORED, "east", anchor=str(later))
    anchors.write_text(json.dumps(exported_anchors(kits["localhost"]) | {"_exported": "2020-01-01T00:00:00+00:00"}))
    restore(tmp_path / "b.age", again, tmp_path / "key")
    ledger = Ledger(again)
    for name in ("j1", "j3"):  # of the one it is not known how many steps left since, of the other not who can pay
        with pytest.raises(PolicyError, match="its admin has not confirmed it"):
            ledger.charge(_charge(name), Limits(1e-5), "eng@x.org")
    assert ledger.settle("j1", 3, "eng@x.org") is None

    def confirm(*more: str | Path) -> tuple[int, str]:
        done = oncofed("site", "budget", "confirm", "--folder", again, *more, home=tmp_path)
        return done.returncode, done.stderr

    status, said = confirm("--anchors", anchors)
    assert (status, "ask the server's admin for a new one" in said) == (3, True)
    anchors.write_text(json.dumps(exported_anchors(kits["localhost"])))
    status, said = confirm("--anchors", anchors)
    assert (status, "the server knows of lines after the backup" in said) == (3, True)
    # A message of the site that was put back hides nothing: the server tells both ends.
    server.write(ANCHORED, "east", anchor=str(AuditLog(again).write(LEFT, "eng@x.org", job="j4", bytes=10)))
    anchors.write_text(json.dumps(exported_anchors(kits["localhost"])))
    status, said = confirm("--anchors", anchors)
    assert (status, "the server knows of lines after the backup" in said) == (3, True)
    server.write(RESTORED)
    anchors.write_text(json.dumps(exported_anchors(kits["localhost"])))
    status, said = confirm("--anchors", anchors)
    assert (status, "the server was put back as well" in said) == (3, True)
    done = oncofed("site", "budget", "confirm", "--folder", again, home=tmp_path)
    assert (done.returncode, "expected --anchors FILE" in done.stderr) == (2, True)
    done = oncofed("site", "budget", "confirm", "--folder", again, "--reason", "j2 was not private", home=tmp_path)
    assert done.returncode == 0, done.stderr
    ledger.charge(_charge("j3"), Limits(1e-5), "eng@x.org")
    with pytest.raises(PolicyError, match="how many of its steps left"):
        ledger.charge(_charge("j1"), Limits(1e-5), "eng@x.org")
    assert ledger.settle("j1", 3, "eng@x.org") is None
    assert ledger.charges()["j1"].event.steps == 30, "the whole charge stays"
    assert AuditLog(again).verify()[0] == []
    assert "j2 was not private" in (again / "audit" / "audit.jsonl").read_text()


@pytest.fixture
def alliance(tmp_path: Path, two_sites: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """An alliance's open kits and its own folder; what was started is stopped."""
    key = pyrage.x25519.Identity.generate()
    (tmp_path / "key.txt").write_text(str(key))
    for_key = f"recipient: {key.to_public()}"
    (tmp_path / "alliance.yaml").write_text(
        f"name: tiny\nserver: localhost\nport: {free_port()}\n{for_key}\n"
        f"sites: {{east: {{{for_key}}}, west: {{{for_key}}}}}\n"
        f"people: {{eng@x.org: {{role: lead, {for_key}}}}}\n"
    )
    (tmp_path / "root.txt").write_text("correct horse battery\n")
    arguments = ("--home", tmp_path / "home", "--password-file", tmp_path / "root.txt", "--json")
    done = oncofed("alliance", "provision", tmp_path / "alliance.yaml", *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = {"home": tmp_path / "home"}
    for kit in json.loads(done.stdout):
        folders[kit["name"]] = tmp_path / "opened" / kit["name"]
        words = ("--out", folders[kit["name"]], "--identity", "key.txt")
        assert oncofed("site", "open", kit["kit"], *words, home=tmp_path).returncode == 0
    for site, data in two_sites.items():
        settings = folders[site] / "site.yaml"
        settings.write_text(settings.read_text().replace("datasets: {}", f"datasets: {{balls: {data}}}"))
    yield folders
    for name in ("east", "west", "localhost"):
        oncofed("site", "stop", "--folder", folders[name], home=tmp_path)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_a_lost_server_and_a_lost_site_come_back_elsewhere_and_the_job_goes_on(
    alliance: dict[str, Path], job: Path, tmp_path: Path
) -> None:
    def command(*arguments: str | Path) -> str:
        done = oncofed(*arguments, home=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    job.write_text(
        job.read_text().replace("number: 2", "number: 60").replace("steps_per_round: 4", "steps_per_round: 20")
    )
    for name in ("localhost", "east", "west"):
        command("site", "start", "--folder", alliance[name], "--background")
    for site in ("east", "west"):
        wait_for(lambda site=site: is_connected(alliance[site]), f"{site} is connected")
    job_id = json.loads(command("job", "submit", job, "--kit", alliance["eng@x.org"], "--json"))["id"]
    events = alliance["localhost"] / "oncofed" / job_id / "events.jsonl"
    wait_for(lambda: events.is_file() and events.read_text().count('"kind": "round"') >= 3, "three rounds are made")

    command(
        "alliance", "backup", tmp_path / "home.age", "--home", alliance["home"], "--new-key", tmp_path / "backup.key"
    )
    recipient = (tmp_path / "backup.key").read_text().splitlines()[0].removeprefix("# public key: ")
    for name in ("localhost", "east"):
        command("site", "backup", tmp_path / f"{name}.age", "--folder", alliance[name], "--recipient", recipient)
    rounds = events.read_text().count('"kind": "round"')
    for name in ("localhost", "east"):  # the machine is gone, with all that it had
        family = psutil.Process(service_state(alliance[name]).pid)
        for process in [family, *family.children(recursive=True)]:
            os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(alliance[name])
        alliance[name] = tmp_path / "elsewhere" / name
        said = command(
            "site", "restore", tmp_path / f"{name}.age", "--out", alliance[name], "--identity", tmp_path / "backup.key"
        )
        assert ("budget confirm" in said) == (name == "east")
        command("site", "start", "--folder", alliance[name], "--background")
    ended = json.loads(command("job", "watch", job_id, "--kit", alliance["eng@x.org"], "--json"))["ended"]
    assert ended == "COMPLETED"
    record = (alliance["localhost"] / "oncofed" / job_id / "events.jsonl").read_text()
    assert [json.loads(line)["round"] for line in record.splitlines() if '"kind": "round"' in line][-1] == 60
    assert rounds < 60, "there was something left to do"
    for name in ("localhost", "east", "west"):
        assert AuditLog(alliance[name]).verify()[0] == []
    shutil.rmtree(alliance["home"])
    command(
        "alliance", "restore", tmp_path / "home.age", "--home", alliance["home"], "--identity", tmp_path / "backup.key"
    )
    arguments = ("--home", alliance["home"], "--password-file", tmp_path / "root.txt")
    assert "east" in command("alliance", "renew", tmp_path / "alliance.yaml", "east", *arguments)
    for name in ("east", "west", "localhost"):
        command("site", "stop", "--folder", alliance[name])
    assert left_running(tmp_path) == []
