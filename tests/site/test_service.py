"""From a sealed kit to a running site, by command."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyrage
import pytest

from commands import Outcome, left_running, oncofed, wait_for
from oncofed.alliance.facts import read_facts
from oncofed.alliance.local import free_port
from oncofed.errors import FederationError
from oncofed.site.service import Service, is_connected, service_state


def test_changed_and_persons_kits_are_not_started(kits: dict[str, Path], run: Callable[..., Outcome]) -> None:
    refused = run("site", "start", "--folder", kits["eng@x.org"])
    assert (refused.status, "a person: nothing is started from it" in refused.text) == (1, True)
    (kits["east"] / "startup" / "sub_start.sh").write_text("evil")
    for more in ([], ["--background"]):
        refused = run("site", "start", "--folder", kits["east"], *more)
        assert (refused.status, "startup/sub_start.sh was changed" in refused.text) == (3, True)
    assert run("site", "start", "--folder", kits["east"].parent).status == 1
    assert run("site", "stop", "--folder", kits["west"]).text == "west was not running"
    shown = run("site", "status", "--folder", kits["west"])
    assert (shown.status, "not running" in shown.text) == (1, True)
    assert "nothing was started" in run("site", "logs", "--folder", kits["west"]).text


@pytest.mark.slow
def test_a_failing_process_is_restarted_then_given_up(kits: dict[str, Path]) -> None:
    script = kits["east"] / "startup" / "sub_start.sh"
    (kits["east"] / "site.yaml").write_text("restarts_an_hour: 1\n")
    told: list[str] = []
    service = Service(kits["east"], told.append)
    script.write_text("echo no such graphics card\nexit 7\n")
    with pytest.raises(Exception, match="ended 2 times within an hour, the last time with status 7"):
        service.run()
    assert told == ["its process ended with status 7; it is started again in 2 s"]
    assert "no such graphics card" in (kits["east"] / "console.log").read_text()
    state = service_state(kits["east"])
    assert (state.running, "status 7" in state.trouble) == (False, True)


def test_the_compile_cache_persists_and_is_private(kits: dict[str, Path]) -> None:
    (kits["east"] / "site.yaml").write_text("restarts_an_hour: 0\n")
    service = Service(kits["east"], lambda line: None)
    script = kits["east"] / "startup" / "sub_start.sh"
    script.write_text('echo "$TORCHINDUCTOR_CACHE_DIR $(stat --format=%a $TORCHINDUCTOR_CACHE_DIR)"; exit 7\n')
    folder = kits["east"] / "run" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (folder / "kept").touch()
    with pytest.raises(FederationError, match="status 7"):
        service.run()
    assert f"{folder} 700" in (kits["east"] / "console.log").read_text()
    assert (folder / "kept").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_broken_site_file_is_named(kits: dict[str, Path], run: Callable[..., Outcome], content: bytes) -> None:
    (kits["east"] / "local" / "resources.json").write_bytes(content)
    refused = run("site", "start", "--folder", kits["east"])
    assert (refused.status, "local/resources.json is broken (" in refused.text) == (1, True), refused.text


def test_a_server_reports_a_taken_port(kits: dict[str, Path], run: Callable[..., Outcome]) -> None:
    with socket.create_server(("", read_facts(kits["localhost"]).port)):
        refused = run("site", "start", "--folder", kits["localhost"])
        assert (refused.status, "Address already in use. What listens there: ss" in refused.text) == (1, True)
        refused = run("site", "start", "--folder", kits["localhost"], "--background")
        assert (refused.status, "did not start: error: port" in refused.text) == (1, True)
    assert not service_state(kits["localhost"]).running


def test_a_kit_with_a_readable_key_is_not_started(kits: dict[str, Path], run: Callable[..., Outcome]) -> None:
    (kits["east"] / "startup" / "client.key").chmod(0o640)
    refused = run("site", "start", "--folder", kits["east"])
    assert (refused.status, "can read startup/client.key" in refused.text) == (3, True)


@pytest.fixture
def opened(tmp_path: Path, two_sites: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """An alliance's kits, provisioned and opened by command.

    East's has a password. Started processes are stopped.
    """
    key = pyrage.x25519.Identity.generate()
    (tmp_path / "key.txt").write_text(str(key))
    sealed = f"recipient: {key.to_public()}"
    (tmp_path / "alliance.yaml").write_text(
        f"name: tiny\nserver: localhost\nport: {free_port()}\n{sealed}\nsites: {{east: {{}}, west: {{{sealed}}}}}\n"
        f"people: {{eng@x.org: {{role: lead, {sealed}}}, admin@x.org: {{role: project_admin, {sealed}}}}}\n"
    )
    (tmp_path / "root.txt").write_text("correct horse battery\n")
    arguments = ("--home", tmp_path / "home", "--password-file", tmp_path / "root.txt", "--json")
    done = oncofed("alliance", "provision", tmp_path / "alliance.yaml", *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = {}
    for kit in json.loads(done.stdout):
        folder = tmp_path / "opened" / kit["name"]
        if kit["password"]:
            (tmp_path / "password.txt").write_text(kit["password"].lower())
        way = ("--password-file", "password.txt") if kit["password"] else ("--identity", "key.txt")
        done = oncofed("site", "open", kit["kit"], "--out", folder, *way, home=tmp_path)
        assert done.returncode == 0, done.stderr
        folders[kit["name"]] = folder
    for site, data in two_sites.items():
        settings = folders[site] / "site.yaml"
        settings.write_text(settings.read_text().replace("datasets: {}", f"datasets: {{balls: {data}}}"))
    yield folders
    for name in ("east", "west", "localhost"):
        oncofed("site", "stop", "--folder", folders[name], home=tmp_path)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_a_job_from_sealed_kits_survives_killed_services(opened: dict[str, Path], job: Path, tmp_path: Path) -> None:
    def command(*arguments: str | Path, status: int = 0) -> str:
        done = oncofed(*arguments, home=tmp_path)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    for name in ("localhost", "east", "west"):
        assert "runs in the background" in command("site", "start", "--folder", opened[name], "--background")
    assert "runs already" in oncofed("site", "start", "--folder", opened["east"], home=tmp_path).stderr
    for site in ("east", "west"):
        wait_for(lambda site=site: is_connected(opened[site]), f"{site} is connected")
    assert "fail" not in command("site", "doctor", "--folder", opened["east"])

    # A killed service leaves its processes; the next one ends them and continues.
    os.kill(service_state(opened["east"]).pid, signal.SIGKILL)
    wait_for(lambda: not service_state(opened["east"]).running, "its service is gone")
    command("site", "start", "--folder", opened["east"], "--background")
    # A killed FLARE process is restarted by the service.
    flare = [
        process
        for process in psutil.Process(service_state(opened["west"]).pid).children(recursive=True)
        if "client_train" in " ".join(process.cmdline())
    ]
    flare[0].kill()
    wait_for(lambda: service_state(opened["west"]).restarts == 1, "west is started again")
    for site in ("east", "west"):
        wait_for(lambda site=site: is_connected(opened[site]), f"{site} is connected again")

    job_id = json.loads(command("job", "submit", job, "--kit", opened["eng@x.org"], "--json"))["id"]
    assert json.loads(command("job", "watch", job_id, "--kit", opened["eng@x.org"], "--json"))["ended"] == "COMPLETED"
    for site in ("east", "west"):
        shown = json.loads(command("site", "status", "--folder", opened[site], "--json"))
        assert (shown["running"], shown["connected"]) == (True, True)
        assert shown["job"]["job"] == job_id
        assert shown["left_today"]["bytes_by_job"][job_id] > 1000
    _no_secret_is_shown(opened)

    for name in ("east", "west", "localhost"):
        assert f"{name} is stopped" in command("site", "stop", "--folder", opened[name])
    assert left_running(tmp_path) == []
    assert "not running" in command("site", "status", "--folder", opened["east"], status=1)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.federation
def test_a_renewal_misses_no_round_and_a_revocation_excludes(
    opened: dict[str, Path], job: Path, tmp_path: Path
) -> None:
    def command(*arguments: str | Path, status: int = 0) -> str:
        done = oncofed(*arguments, home=tmp_path)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    text = job.read_text().replace("number: 2", "number: 2000, quorum: 1")
    job.write_text(text.replace("steps_per_round: 4", "steps_per_round: 40"))
    for name in ("localhost", "east", "west"):
        command("site", "start", "--folder", opened[name], "--background")
    for site in ("east", "west"):
        wait_for(lambda site=site: is_connected(opened[site]), f"{site} is connected")
    submitted = oncofed("job", "submit", job, "--kit", opened["eng@x.org"], "--json", home=tmp_path)
    job_id = json.loads(submitted.stdout)["id"]
    events = opened["localhost"] / "oncofed" / job_id / "events.jsonl"
    wait_for(lambda: len(_participations(events)) > 1, "both sites train")
    assert _participations(events)[-1]["in_time"] == ["east", "west"]

    root = ("--home", tmp_path / "home", "--password-file", tmp_path / "root.txt")
    passwords = tmp_path / "passwords.txt"
    before = read_facts(opened["east"]).certificate(opened["east"])
    command("alliance", "renew", tmp_path / "alliance.yaml", "east", "--passwords", passwords, *root)
    passwords.write_text(passwords.read_text().split("\t")[1])
    kit = tmp_path / "home" / "kits" / "east.kit.age"
    said = command("site", "renew", kit, "--folder", opened["east"], "--password-file", passwords)
    assert "as soon as no job runs here" in said
    assert read_facts(opened["east"]).certificate(opened["east"]).serial_number != before.serial_number

    root = (*root, "--server-kit", opened["localhost"])
    command("alliance", "revoke", "west", *root)
    wait_for(lambda: _participations(events)[-1]["in_time"] == ["east"], "it is out")
    begun = len(_participations(events))
    wait_for(lambda: len(_participations(events)) > begun + 3, "rounds go on")
    # It stays out after its restart, and after the server's.
    command("site", "stop", "--folder", opened["west"])
    command("site", "start", "--folder", opened["west"], "--background")
    command("alliance", "revoke", "eng@x.org", *root)
    wait_for(lambda: "eng@x.org is revoked" in (opened["localhost"] / "console.log").read_text(), "the server knows")
    refused = command("job", "stop", job_id, "--kit", opened["eng@x.org"], status=3)
    assert "eng@x.org may not do this" in refused
    command("job", "stop", job_id, "--kit", opened["admin@x.org"])
    assert all(who["in_time"] == ["east"] for who in _participations(events)[begun:])
    assert all("east" in who["in_time"] for who in _participations(events)), "a round was missed"
    service_log = opened["east"] / "service.log"
    wait_for(lambda: "its kit was renewed" in service_log.read_text(), "the new certificate is taken")
    wait_for(lambda: is_connected(opened["east"]), "east is connected with it")
    assert service_state(opened["east"]).restarts == 0


def _participations(events: Path) -> list[dict[str, list[str]]]:
    if not events.is_file():
        return []
    rounds = [json.loads(line) for line in events.read_text().splitlines() if '"round"' in line]
    return [event["participation"] for event in rounds if event["kind"] == "round"]


def _no_secret_is_shown(opened: dict[str, Path]) -> None:
    """Search all logs and process lists for keys and tokens."""
    keys = {path.read_text().splitlines()[3] for folder in opened.values() for path in folder.rglob("*.key")}
    for folder in opened.values():
        for log in folder.rglob("*"):
            if log.suffix not in (".log", ".txt", ".json", ".jsonl"):
                continue
            text = log.read_text(errors="replace")
            assert "PRIVATE KEY" not in text, log
            assert not any(key in text for key in keys), log
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert "PRIVATE KEY" not in line
        assert not any(key in line for key in keys)


def test_a_moved_kit_still_runs(kits: dict[str, Path], tmp_path: Path) -> None:
    moved = kits["localhost"].rename(tmp_path / "elsewhere")
    assert read_facts(moved).kind == "server"
    service = Service(moved, lambda line: None)
    assert service.facts.participant == "localhost"
