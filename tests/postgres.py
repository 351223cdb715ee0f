"""A real PostgreSQL server for tests, on loopback, started and ended by them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_PASSWORD = "planted-password"


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return Path(program).parent if program else None


def why_no_postgres() -> str:
    """Return why there is no PostgreSQL here; empty: there is one."""
    return "" if _programs() else "needs PostgreSQL: make hospital"


@contextlib.contextmanager
def postgres() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server; yield its address for SQLAlchemy and its process."""
    programs = _programs()
    if programs is None:
        pytest.skip(why_no_postgres())
    # It refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    # Root's own temporary folder may be closed to others.
    with tempfile.TemporaryDirectory(prefix="oncofed-pg-", dir="/var/tmp" if user else None) as name:
        folder = Path(name)
        if user:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        secret = folder / "password"
        secret.write_text(_PASSWORD)
        secret.chmod(0o644)
        data = folder / "data"
        run = {"user": user, "group": user, "extra_groups": []} if user else {}
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                data,
                "-U",
                "reader",
                "-A",
                "scram-sha-256",
                f"--pwfile={secret}",
                "-N",
                "-E",
                "UTF8",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **run,  # type: ignore[call-overload]
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-p",
            str(port),
        ]
        log = (folder / "log").open("wb")
        process = subprocess.Popen([programs / "postgres", "-D", data, *options], stdout=log, stderr=log, **run)  # type: ignore[call-overload]
        try:
            _wait(programs, port, process)
            yield f"postgresql+psycopg://reader:{_PASSWORD}@127.0.0.1:{port}/postgres", process
        finally:
            process.terminate()
            process.wait(30)
            log.close()


def _wait(programs: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        line: list[str | Path] = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(line, check=False).returncode == 0:
            return
    raise RuntimeError("PostgreSQL did not start")
