"""Tests of packs: making, refusing, importing from memory."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oncofed.alliance.authority import Authority
from oncofed.alliance.kits import provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import PolicyError, SpecError
from oncofed.job.spec import parse_job
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.known import networks_of_pack
from oncofed.packs.approvals import pack_problems, read_decisions, refusal_of, write_decision
from oncofed.packs.findings import difference, findings_of, imports_of
from oncofed.packs.load import load_pack, loaded_packs
from oncofed.packs.pack import find_pack, make_pack, read_pack
from synthetic import JOB, make_package, write_job

_UNET = "network: unet, channels: [4, 8], residual_units: 1"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "wide_net")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits of an alliance of one site."""
    return provision(AllianceSpec(name="tiny", sites=("east",)), tmp_path_factory.mktemp("a"), Authority.new("tiny"))


def test_the_digest_depends_on_the_files_alone(package: Path, kits: Path) -> None:
    unsigned = make_pack(package, None)
    signed = make_pack(package, kits / "engineer@oncofed.org" / "startup")
    assert signed.digest == unsigned.digest
    assert pack_problems(signed, kits / "east" / "startup") == []
    assert pack_problems(unsigned, kits / "east" / "startup") == ["its certificate or signature is broken"]
    (package / "blocks.py").write_text((package / "blocks.py").read_text() + "#")
    assert make_pack(package, None).digest != unsigned.digest


def test_who_signed_is_proven_by_the_alliance(package: Path, kits: Path, tmp_path: Path) -> None:
    other = provision(AllianceSpec(name="tiny", sites=("east",)), tmp_path / "other", Authority.new("tiny"))
    foreign = make_pack(package, other / "engineer@oncofed.org" / "startup")
    assert pack_problems(foreign, kits / "east" / "startup") == ["its certificate is not of this alliance"]
    (package / "blocks.py").write_text("x = 1\n")
    later = make_pack(package, None)
    moved = _rebuilt(later.content, signature=json.dumps(foreign.signature).encode())
    assert "it was changed after it was signed" in pack_problems(read_pack(moved, "x"), other / "east" / "startup")


def _rebuilt(content: bytes, signature: bytes | None = None, **changes: bytes) -> bytes:
    """Return a pack with files replaced or added.

    ``changes`` are by path with / written as __.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files |= {name.replace("__", "/"): data for name, data in changes.items()}
    if signature:
        files["signature.json"] = signature
    return _zipped(files)


def _zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def test_changed_added_and_missing_files_are_found(package: Path) -> None:
    content = make_pack(package, None).content
    for bad in (
        _rebuilt(content, **{"code__blocks.py": b"import os"}),
        _rebuilt(content, **{"code__more.py": b""}),
        _rebuilt(content, **{"more.py": b""}),
    ):
        with pytest.raises(SpecError, match="its files are not those of its manifest"):
            read_pack(bad, "it")


def _link() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        link = zipfile.ZipInfo("code/passwords.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return packed.getvalue()


@pytest.mark.attack("path out of a pack, link, bomb, native code", by="the reader of packs", logged="the refused job")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_zipped({"../outside.py": b""}), "which no pack holds"),
        (_zipped({"/etc/cron.d/x.py": b""}), "which no pack holds"),
        (_zipped({"code/x.so": b"\x7fELF"}), "which no pack holds"),
        (_link(), "is a link or a device"),
        (_zipped({f"code/{n}.py": b"" for n in range(301)}), "expected at most 300"),
        (_zipped({"code/a.py": b"0" * (9 << 20)}), "larger than"),
        (_zipped({"code/a.py": b"0" * (2 << 20)}), "larger than"),
        (_zipped({"manifest.json": b"[", "signature.json": b"{}"}), "its manifest is broken"),
        (_zipped({"manifest.json": b"[" * 9999, "signature.json": b"{}"}), "no pack"),
        (_zipped({}), "its manifest is broken"),
        (b"PK\x03\x04 no archive", "no pack"),
        (b"", "no pack"),
    ],
    ids=[
        "upwards",
        "absolute",
        "native",
        "link",
        "many",
        "bomb",
        "large",
        "broken",
        "deep",
        "empty",
        "torn",
        "nothing",
    ],
)
def test_files_that_are_no_packs_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        read_pack(content, "it")


def test_a_false_size_does_not_unpack_more_than_allowed(package: Path) -> None:
    content = bytearray(_zipped({"code/a.py": b"0" * (4 << 20)}))
    real = (4 << 20).to_bytes(4, "little")
    for _ in range(content.count(real)):
        at = content.index(real)
        content[at : at + 4] = (100).to_bytes(4, "little")
    with pytest.raises(SpecError, match=r"no pack|larger than"):
        read_pack(bytes(content), "it")


def test_folders_that_cannot_be_packed_are_reported(package: Path, tmp_path: Path) -> None:
    (package / "weights.pt").write_bytes(b"")
    with pytest.raises(SpecError, match=r"weights\.pt: expected .*Weights go with the job"):
        make_pack(package, None)
    (package / "weights.pt").unlink()
    (package / "secret.txt").symlink_to("/etc/passwd")
    with pytest.raises(SpecError, match="a link"):
        make_pack(package, None)
    with pytest.raises(SpecError, match="no Python package"):
        make_pack(tmp_path, None)
    with pytest.raises(SpecError, match="no key to sign with"):
        make_pack(make_package(tmp_path / "other"), tmp_path)


def test_its_network_is_known_by_the_digest_alone_and_is_built(package: Path, tmp_path: Path) -> None:
    pack = make_pack(package, None)
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "some.pack.zip").write_bytes(pack.content)
    load_pack(find_pack(pack.digest, (tmp_path, tmp_path / "packs")))
    signed = replace(pack, signature={"certificate": "x"})
    load_pack(signed)
    assert [loaded for loaded in loaded_packs() if loaded.digest == pack.digest] == [signed]
    assert [network.name for network in networks_of_pack(pack.digest)] == ["wide_net"]
    spec = ModelSpec(code=pack.digest, network="wide_net", arguments={"width": 4})
    assert build_network(NetworkRequest(spec, 1, 3, 3, (8, 8, 8)), 1)(torch.zeros(1, 1, 8, 8, 8)).shape == (
        1,
        3,
        8,
        8,
        8,
    )
    with pytest.raises(ValueError, match="unknown network 'wide_net'"):
        ModelSpec(network="wide_net")
    assert ModelSpec(code=pack.digest, network="unet").kind == "dense"
    with pytest.raises(ValueError, match="has no network 'unett', nor has oncofed; the pack has wide_net"):
        ModelSpec(code=pack.digest, network="unett")
    unknown = ModelSpec(code="0" * 64, network="wide_net")
    assert unknown.lacks_code
    with pytest.raises(SpecError, match="is not loaded"):
        build_network(NetworkRequest(unknown, 1, 3, 3, (8, 8, 8)), 1)
    with pytest.raises(SpecError, match="no pack with the digest"):
        find_pack("0" * 64, (tmp_path,))


def test_reading_a_job_runs_no_code_of_its_pack(run, package: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (package / "__init__.py").write_text(f"{(package / '__init__.py').read_text()}\nopen({str(ran)!r}, 'w').close()\n")
    pack = make_pack(package, None)
    file = write_job(tmp_path, JOB.replace(_UNET, f"network: wide_net, code: {pack.digest}"))
    (tmp_path / "wide_net.pack.zip").write_bytes(pack.content)
    spec = parse_job(file)
    assert spec.model.lacks_code
    assert spec.with_rounds(3).to_yaml() == spec.to_yaml().replace("number: 2", "number: 3")
    with pytest.raises(SpecError, match="is not loaded: read the job with its code"):
        spec.plan()
    assert run("job", "show", file).status == 0
    assert not ran.exists()
    assert parse_job(file, with_code=True).plan().build_network()
    assert ran.exists()


def test_a_job_with_code_is_checked_against_its_pack(package: Path, tmp_path: Path) -> None:
    pack = make_pack(package, None)
    (tmp_path / "wide_net.pack.zip").write_bytes(pack.content)
    file = write_job(tmp_path, JOB.replace(_UNET, f"network: unett, code: {pack.digest}"))
    with pytest.raises(SpecError, match=r"job\.yaml:6: model\.network: found 'unett'; the pack .* has wide_net"):
        parse_job(file, with_code=True)
    file.write_text(file.read_text().replace(pack.digest, "c" * 64))
    with pytest.raises(SpecError, match="no pack with the digest"):
        parse_job(file, with_code=True)


def test_a_pack_that_fails_to_import_is_reported_and_leaves_nothing(package: Path) -> None:
    (package / "blocks.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(SpecError, match="cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be"):
        load_pack(make_pack(package, None))


def test_a_reviewer_sees_findings_and_changes(package: Path) -> None:
    before = make_pack(package, None)
    assert findings_of(before) == []
    assert imports_of(before) == ["oncofed.models", "torch"]
    (package / "blocks.py").write_text(
        "import socket, pickle\nfrom subprocess import run\nfrom torch import nn\n\n\nclass Block(nn.ReLU):\n"
        "    def forward(self, x):\n        open('/etc/passwd').read()\n        eval('1')\n        import os\n"
        "        os.system('id')\n        return x.__class__\n"
    )
    after = make_pack(package, None)
    found = {(finding.line, finding.what) for finding in findings_of(after)}
    assert {
        (1, "network"),
        (1, "pickle"),
        (2, "other processes"),
        (8, "files"),
        (9, "eval"),
        (10, "hidden ways"),
        (11, "other processes"),
        (12, "hidden ways"),
    } <= found
    assert [finding.line for finding in findings_of(after)] == sorted(finding.line for finding in findings_of(after))
    assert "+import socket, pickle" in difference(before, after)
    assert "__init__" not in difference(before, after)
    assert "+from torch import nn" in difference(None, before)


def test_a_decision_is_about_one_digest_and_the_last_one_counts(package: Path, tmp_path: Path) -> None:
    pack = make_pack(package, None)
    assert "is not approved" in str(refusal_of(tmp_path, pack))
    for state in ("approved", "withdrawn", "rejected", "approved"):
        write_decision(tmp_path, pack, state, "admin", "the board said so")
        assert (refusal_of(tmp_path, pack) is None) == (state == "approved")
    (package / "blocks.py").write_text((package / "blocks.py").read_text() + "\n")
    assert "is not approved" in str(refusal_of(tmp_path, make_pack(package, None)))
    (tmp_path / "code.json").write_text('{"x": {"state": "approved"}}')
    with pytest.raises(PolicyError, match="no pack runs there"):
        read_decisions(tmp_path)
