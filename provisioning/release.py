"""Wheel and sdist, and all that a release adds to them.

``make dist`` builds the two. ``make release`` adds a bill of materials, a statement of how the files were made
(in-toto, SLSA 1.0), their SHA-256 and, with a key, its signature. ``make version`` sets the version everywhere. Built
twice from one commit, each file has the same bits.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version as installed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "workspace" / "dist"
SUMS = "SHA256SUMS"
# Namespace of the signature: one made for another purpose does not verify.
NAMESPACE = "oncofed-release"
_BUILDER = "urn:oncofed:make-release"
_VERSION_LINE = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_CITATION_LINES = re.compile(r"^(version|date-released): .*$", re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked for; return an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("dist", help="build wheel and sdist into workspace/dist")
    release = commands.add_parser("release", help="and their bill of materials, provenance, sums and signature")
    release.add_argument("--key", type=Path, help="private key of ssh-keygen; without it nothing is signed")
    new = commands.add_parser("version", help="set the version, and gather docs/changes into CHANGELOG.md")
    new.add_argument("version", help="such as 0.2.0")
    given = parser.parse_args(arguments)
    try:
        if given.command == "version":
            set_version(ROOT, given.version)
        elif given.command == "dist":
            _say(build(DIST))
        else:
            _say(make_release(DIST, given.key))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: {error.cmd[0]} failed: {(error.stderr or '').strip()[-500:]}", file=sys.stderr)
        return 1
    return 0


def build(out: Path) -> list[Path]:
    """Build the sdist, and the wheel from it; return both.

    Args:
        out: folder, made anew.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _build(ROOT, "sdist", out)
    (sdist,) = out.glob("*.tar.gz")
    # Built from the sdist, the wheel shows that the sdist lacks nothing.
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        _build(source, "wheel", out)
    (wheel,) = out.glob("*.whl")
    return [wheel, sdist]


def _build(source: Path, target: str, out: Path) -> None:
    # Times in archives are those of the commit, or what the environment says.
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch},
        check=True,
        capture_output=True,
        text=True,
    )


def make_release(out: Path, key: Path | None) -> list[Path]:
    """Build a release; return its files.

    Args:
        out: folder, made anew.
        key: private key of ssh-keygen, or None.

    Raises:
        ValueError: a file is not committed, or the changelog does not know the version.
    """
    changed = _git("status", "--porcelain")
    if changed:
        raise ValueError(f"a release is of a commit, found changes in {changed.split()[1]}: commit or remove them")
    version = version_of(ROOT)
    if f"## {version}" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        raise ValueError(f"CHANGELOG.md has no section {version}: make version VERSION={version}")
    files = build(out)
    files += [_bill(out / f"oncofed-{version}.cdx.json")]
    statement = out / f"oncofed-{version}.intoto.json"
    statement.write_text(json.dumps(provenance(files), indent=2) + "\n", encoding="utf-8")
    files += [statement, write_sums(out, [*files, statement])]
    return [*files, *([sign(out / SUMS, key)] if key else [])]


def _bill(file: Path) -> Path:
    """Write the bill of materials of what a site installs."""
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "requirements", str(ROOT / "provisioning" / "requirements.txt"),
         "--pyproject", str(ROOT / "pyproject.toml"), "--spec-version", "1.6", "--output-reproducible",
         "--output-file", str(file)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return file


def provenance(files: list[Path]) -> dict[str, object]:
    """Return the in-toto statement of files: from which commit, by which tools.

    Its predicate is https://slsa.dev/provenance/v1.
    """
    tools = {name: installed(name) for name in ("hatchling", "pip")}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": file.name, "digest": {"sha256": _sha256(file)}} for file in files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{_BUILDER}:v1",
                "externalParameters": {"command": "make release", "version": version_of(ROOT)},
                "internalParameters": {"SOURCE_DATE_EPOCH": int(_git("log", "-1", "--format=%ct"))},
                "resolvedDependencies": [
                    {"name": "oncofed", "digest": {"gitCommit": _git("rev-parse", "HEAD")}},
                    {
                        "name": "provisioning/constraints.txt",
                        "digest": {"sha256": _sha256(ROOT / "provisioning" / "constraints.txt")},
                    },
                ],
            },
            "runDetails": {"builder": {"id": _BUILDER, "version": {"python": platform.python_version(), **tools}}},
        },
    }


def write_sums(folder: Path, files: list[Path]) -> Path:
    """Write the SHA-256 of files, as ``sha256sum --check`` reads them."""
    sums = folder / SUMS
    sums.write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(files)), encoding="utf-8")
    return sums


def sign(file: Path, key: Path) -> Path:
    """Sign a file by a key of ssh-keygen; return the signature.

    Raises:
        ValueError: there is no such key, or it cannot sign.
    """
    if not key.is_file():
        raise ValueError(f"{key}: no private key; make one: ssh-keygen -t ed25519 -f {key}")
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file)],
        check=True,
        capture_output=True,
        text=True,
    )
    return file.with_name(f"{file.name}.sig")


def version_of(root: Path) -> str:
    """Return the version of a checkout."""
    found = _VERSION_LINE.search((root / "custom" / "oncofed" / "__init__.py").read_text(encoding="utf-8"))
    assert found
    return found[1]


def set_version(root: Path, version: str) -> None:
    """Set the version in code and citation, and gather the changelog's entries.

    Raises:
        ValueError: it is no version.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"found version {version!r}, expected three numbers such as 0.2.0")
    code = root / "custom" / "oncofed" / "__init__.py"
    code.write_text(_VERSION_LINE.sub(f'__version__ = "{version}"', code.read_text(encoding="utf-8")), encoding="utf-8")
    citation = root / "CITATION.cff"
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    values = {"version": version, "date-released": today}
    text = _CITATION_LINES.sub(lambda line: f"{line[1]}: {values[line[1]]}", citation.read_text(encoding="utf-8"))
    citation.write_text(text, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--yes", "--version", version, "--dir", str(root)],
        check=True,
        capture_output=True,
        text=True,
    )


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _say(files: list[Path]) -> None:
    for file in files:
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size / 1e6:.2f} MB")
    if not any(file.suffix == ".sig" for file in files) and len(files) > 2:
        print("not signed: make release KEY=FILE signs with a key of ssh-keygen")


if __name__ == "__main__":
    sys.exit(main())
