"""The package is built twice to the same bits; a release can be verified by OpenSSH and sha256sum."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncofed import __version__
from oncofed.job.spec import list_jobs

sys.path.insert(0, str(Path(__file__).parents[1] / "provisioning"))

import release

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Wheel and source archive."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield release.build(tmp_path_factory.mktemp("dist") / "first")


def test_built_again_they_have_the_same_bits(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    again = release.build(tmp_path / "again")
    assert [file.name for file in again] == [file.name for file in files]
    assert [file.read_bytes() == first.read_bytes() for file, first in zip(again, files, strict=True)] == [True, True]


def test_the_wheel_holds_what_runs_need(files: list[Path]) -> None:
    with zipfile.ZipFile(files[0]) as wheel:
        names = set(wheel.namelist())
    package = {
        path.relative_to(_ROOT / "custom").as_posix()
        for path in (_ROOT / "custom" / "oncofed").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert package - names == set()
    assert {f"oncofed/_jobs/{entry.name}/job.yaml" for entry in list_jobs()} <= names
    assert {f"oncofed/_provisioning/{name}.txt" for name in ("constraints", "requirements")} <= names
    assert not [name for name in names if not name.startswith(("oncofed/", f"oncofed-{__version__}.dist-info/"))]


def test_the_source_archive_holds_what_is_meant(files: list[Path]) -> None:
    with tarfile.open(files[1]) as archive:
        places = {Path(name).parts[1] for name in archive.getnames()}
    meant = {"custom", "jobs", "provisioning", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}
    assert places - {".gitignore", "PKG-INFO"} == meant


def test_the_statement_names_files_and_commit(files: list[Path]) -> None:
    statement = json.loads(json.dumps(release.provenance(files)))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    digests = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert digests == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (commit, _) = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert len(commit["digest"]["gitCommit"]) == 40


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_sums_and_signature_are_verified_by_common_tools(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(files[0].parent, folder)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sums = release.write_sums(folder, [folder / file.name for file in files])
    signature = release.sign(sums, key)
    (folder / "allowed_signers").write_text(f"release@oncofed {key.with_suffix('.pub').read_text()}")

    def verified() -> list[int]:
        # As docs/releases.md says.
        check = ["sha256sum", "--check", "--quiet", sums.name]
        verify = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "release@oncofed"]
        verify += ["-n", "oncofed-release", "-s", signature.name]
        done = [
            subprocess.run(line, cwd=folder, input=sums.read_bytes(), capture_output=True, check=False)
            for line in (check, verify)
        ]
        return [one.returncode for one in done]

    assert verified() == [0, 0]
    wheel = folder / files[0].name
    wheel.write_bytes(wheel.read_bytes() + b"more")
    assert verified() == [1, 0]
    release.write_sums(folder, [folder / file.name for file in files])
    assert verified()[1] != 0


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ssh-keygen -t ed25519"):
        release.sign(tmp_path / "SHA256SUMS", tmp_path / "none")


def test_the_version_is_one_everywhere() -> None:
    assert release.version_of(_ROOT) == __version__
    assert f"\nversion: {__version__}\n" in (_ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {__version__}" in (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.2.0rc1"])
def test_what_is_no_version_changes_nothing(tmp_path: Path, version: str) -> None:
    with pytest.raises(ValueError, match=r"three numbers such as 0\.2\.0"):
        release.set_version(tmp_path, version)
