"""Certificate requests for keys that never leave their participant."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pyrage
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from oncofed.alliance.authority import Authority, common_name
from oncofed.alliance.issued import Alliance
from oncofed.alliance.request import key_matches, make_request, open_answer, read_request
from oncofed.alliance.sealing import changed_files
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError

PASSWORD = "correct horse battery"
SPEC = AllianceSpec(
    name="tiny",
    server="fl.example.org",
    sites={"east": {"own_key": True}, "west": {}},
    people={"eng@x.org": {"role": "lead"}},
)


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alliance]:
    """A new alliance without kits.

    Its root's password takes seconds, but only once.
    """
    alliance = Alliance(tmp_path_factory.mktemp("alliance") / "home")
    authority = alliance.create(SPEC, PASSWORD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Authority, "load", lambda folder, password: authority)
        yield alliance


@pytest.mark.parametrize(("name", "kind"), [("east", "site"), ("fl.example.org", "server"), ("eng@x.org", "person")])
def test_a_key_never_leaves_its_participant(alliance: Alliance, tmp_path: Path, name: str, kind: str) -> None:
    asked = make_request(name, kind, tmp_path / "request")  # type: ignore[arg-type]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "request").iterdir())
    sent = tmp_path / "request.json"
    sent.write_bytes((tmp_path / "request" / "request.json").read_bytes())
    assert "PRIVATE" not in sent.read_text()
    request = read_request(sent)
    assert request.fingerprint == asked.fingerprint
    sealed = alliance.approve(SPEC, request, PASSWORD)
    assert sealed.password is None
    facts = open_answer(sealed.file, tmp_path / "kit", tmp_path / "request")
    assert (facts.participant, facts.kind) == (name, kind)
    certificate = facts.certificate(tmp_path / "kit")
    assert common_name(certificate) == name
    certificate.verify_directly_issued_by(Authority.load(alliance.home, PASSWORD).certificate)
    key = facts.certificate_file(tmp_path / "kit").with_suffix(".key")
    assert key_matches(certificate, key.read_bytes())
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert changed_files(tmp_path / "kit") == []
    assert alliance.issued().participants[name].sealed_for == request.recipient
    # A second request for the same name is refused, unless the alliance confirms it.
    with pytest.raises(AllianceError, match=f"{name} has a kit already"):
        alliance.approve(SPEC, request, PASSWORD)
    if name == "east":
        with pytest.raises(AllianceError, match="They ask anew"):
            list(alliance.renew(SPEC, [name], PASSWORD))
    alliance.approve(SPEC, request, PASSWORD, again=True)
    assert len(alliance.issued().participants[name].certificates) == 2


def test_an_answer_to_another_request_is_refused(alliance: Alliance, tmp_path: Path) -> None:
    first = make_request("west", "site", tmp_path / "first")
    make_request("west", "site", tmp_path / "second")
    sealed = alliance.approve(SPEC, first, PASSWORD)
    with pytest.raises(AllianceError, match="does not open"):
        open_answer(sealed.file, tmp_path / "kit", tmp_path / "second")
    key = tmp_path / "first" / "private.key"
    key.write_bytes((tmp_path / "second" / "private.key").read_bytes())
    with pytest.raises(AllianceError, match="the answer to another request"):
        open_answer(sealed.file, tmp_path / "kit", tmp_path / "first")
    assert not (tmp_path / "kit").exists()
    with pytest.raises(AllianceError, match="holds no request"):
        open_answer(sealed.file, tmp_path / "kit", tmp_path)


def _sent(tmp_path: Path, change: Callable[[dict[str, str]], object]) -> Path:
    make_request("mallory", "site", tmp_path / "request")
    values = json.loads((tmp_path / "request" / "request.json").read_text())
    change(values)
    path = tmp_path / "sent.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(participant="east"), "asks for a certificate of another name"),
        (lambda values: values.update(participant="../east"), "participant"),
        (lambda values: values.update(kind="root"), "kind"),
        (lambda values: values.update(csr="nothing"), "csr"),
        (lambda values: values.update(recipient="age1evil"), "recipient"),
        (lambda values: values.pop("csr"), "csr"),
        (lambda values: values.update(more="x" * 70_000), "larger than a request"),
    ],
)
def test_a_request_that_was_changed_is_refused(
    tmp_path: Path, change: Callable[[dict[str, str]], object], said: str
) -> None:
    with pytest.raises(AllianceError, match=said):
        read_request(_sent(tmp_path, change))


def test_invalid_requests_and_applicants_are_refused(alliance: Alliance, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(AllianceError, match="is no request"):
        read_request(tmp_path / "notes.txt")
    with pytest.raises(AllianceError, match="No such file"):
        read_request(tmp_path / "nothing")
    with pytest.raises(AllianceError, match="nobody who can ask"):
        alliance.approve(SPEC, read_request(_sent(tmp_path, lambda values: None)), PASSWORD)
    as_person = make_request("east", "person", tmp_path / "east")
    with pytest.raises(AllianceError, match="asks as a person, but is a site"):
        alliance.approve(SPEC, as_person, PASSWORD)
    with pytest.raises(AllianceError, match="exists"):
        make_request("east", "site", tmp_path / "east")
    with pytest.raises(AllianceError, match="no name of a participant"):
        make_request("a" * 70, "site", tmp_path / "long")
    assert not (tmp_path / "long").exists()


def test_a_certificate_for_a_foreign_key_is_refused(tmp_path: Path) -> None:
    """The request is signed with its key (proof of possession)."""
    make_request("east", "site", tmp_path / "request")
    values = json.loads((tmp_path / "request" / "request.json").read_text())
    der = bytearray(x509.load_pem_x509_csr(values["csr"].encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    values["csr"] = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    (tmp_path / "sent.json").write_text(json.dumps(values))
    with pytest.raises(AllianceError, match="not signed with the key"):
        read_request(tmp_path / "sent.json")


def test_which_participants_can_be_renewed(tmp_path_factory: pytest.TempPathFactory) -> None:
    alliance = Alliance(tmp_path_factory.mktemp("renewed") / "home")
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    spec = AllianceSpec(
        name="tiny",
        recipient=recipient,
        sites={name: {"recipient": recipient} for name in ("east", "west")},
        people={"eng@x.org": {"role": "lead", "recipient": recipient}},
        valid_days=40,
    )
    authority = alliance.create(spec, PASSWORD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Authority, "load", lambda folder, password: authority)
        list(alliance.issue(spec, PASSWORD))
        alliance.revoke("west", PASSWORD)
        assert alliance.expiring(spec, 30) == []
        assert alliance.expiring(spec, 60) == ["localhost", "east", "eng@x.org"]
        with pytest.raises(AllianceError, match="west is revoked"):
            list(alliance.renew(spec, ["west"], PASSWORD))
        with pytest.raises(AllianceError, match="north has no kit yet"):
            list(alliance.renew(spec, ["north"], PASSWORD))
        longer = spec.model_copy(update={"valid_days": 400})
        assert [kit.name for kit in alliance.renew(longer, ["east"], PASSWORD)] == ["east"]
        assert alliance.expiring(spec, 60) == ["localhost", "eng@x.org"]
        old, new = alliance.issued().participants["east"].certificates
        assert old.serial != new.serial
