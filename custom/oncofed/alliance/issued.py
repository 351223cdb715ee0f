"""An alliance's folder: root key, sealed kits, issued certificates."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from oncofed.alliance.authority import Authority, common_name, fingerprint
from oncofed.alliance.contents import add_contents
from oncofed.alliance.facts import Kind, describe, read_facts
from oncofed.alliance.kits import provision
from oncofed.alliance.request import CertificateRequest
from oncofed.alliance.sealing import new_password, seal, sign_folder
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError
from oncofed.flare.security.revocation import REVOKED_FILE, Revoked, revoked_file
from oncofed.private_files import write_private
from oncofed.settings import StrictModel

ISSUED_FILE = "alliance.json"
KITS_FOLDER = "kits"
KIT_SUFFIX = ".kit.age"


class IssuedCertificate(StrictModel):
    """A certificate that the alliance issued."""

    serial: str = Field(description="hexadecimal")
    fingerprint: str
    made: datetime
    until: datetime
    oncofed: str = Field("", description="version that made the kit")


class Participant(StrictModel):
    """A participant and its certificates."""

    kind: Kind
    role: str | None = None
    organisation: str
    kit: str = Field(description="file in the folder kits")
    sealed_for: str = Field(description='"password", or an age recipient')
    certificates: tuple[IssuedCertificate, ...]
    revoked: datetime | None = None


class IssuedCertificates(StrictModel):
    """``alliance.json``: every participant's certificates, no secrets."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    server: str
    port: int
    root_fingerprint: str
    participants: dict[str, Participant] = Field(default_factory=dict)
    lists: int = Field(0, description="number of revocation lists signed so far")


@dataclass(frozen=True)
class SealedKit:
    """A new sealed kit.

    Attributes:
        name: of the participant.
        kind: of participant.
        file: the sealed kit.
        password: opens it; None if it is sealed for an age recipient.
    """

    name: str
    kind: Kind
    file: Path
    password: str | None


class Alliance:
    """An alliance's folder, which only its project admin can enter.

    Args:
        home: the folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def exists(self) -> bool:
        """Whether the folder holds an alliance."""
        return Authority.is_in(self.home)

    def issued(self) -> IssuedCertificates:
        """Read the issued certificates.

        Raises:
            AllianceError: the folder holds no alliance, or its list is broken.
        """
        path = self.home / ISSUED_FILE
        try:
            return IssuedCertificates.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise AllianceError(
                f"{self.home} holds no alliance. Found one with: oncofed alliance provision alliance.yaml --home "
                f"{self.home}"
            ) from None
        except (ValueError, ValidationError) as error:
            raise AllianceError(f"{path} is broken ({type(error).__name__}). Restore it from a backup.") from None

    def create(self, spec: AllianceSpec, password: str) -> Authority:
        """Create the alliance in an empty folder.

        Root key and list are saved before any certificate is issued: without the root no kit could be renewed.

        Args:
            spec: the participants.
            password: for the root key.

        Raises:
            AllianceError: the folder is not empty.
        """
        if self.home.exists() and any(self.home.iterdir()):
            raise AllianceError(f"{self.home} is not empty and holds no alliance. Name another folder with --home.")
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)
        authority = Authority.new(spec.name)
        root = fingerprint(authority.certificate)
        self._write(IssuedCertificates(name=spec.name, server=spec.server, port=spec.port, root_fingerprint=root))
        authority.save(self.home, password)
        return authority

    def without_kit(self, spec: AllianceSpec) -> list[str]:
        """Return the participants who still need a kit."""
        known = self.issued().participants if self.exists else {}
        return [name for name in spec.everybody if name not in known and not spec.makes_own_key(name)]

    def expiring(self, spec: AllianceSpec, days: int) -> list[str]:
        """Return participants whose certificates expire within ``days``.

        Revoked participants are left out.
        """
        before = datetime.now(timezone.utc) + timedelta(days=days)
        known = self.issued().participants.items()
        return [
            name
            for name, entry in known
            if name in spec.everybody
            and not spec.makes_own_key(name)
            and not entry.revoked
            and entry.certificates[-1].until < before
        ]

    def issue(self, spec: AllianceSpec, password: str) -> Iterator[SealedKit]:
        """Create missing kits, and at first use the alliance itself.

        Existing kits stay unchanged.

        Args:
            spec: the participants.
            password: of the alliance's root key.

        Yields:
            each kit once it is sealed and listed. Its password is not stored.

        Raises:
            AllianceError: the password is wrong, or ``spec`` is of another alliance.
        """
        if self.exists:
            self._require_same_alliance(spec, self.issued())
            authority = Authority.load(self.home, password)
        else:
            authority = self.create(spec, password)
        new = self.without_kit(spec)
        if new:
            yield from self._make_kits(spec, authority, new)

    def renew(self, spec: AllianceSpec, names: Sequence[str], password: str) -> Iterator[SealedKit]:
        """Create new kits with new keys.

        The old certificates stay valid until they expire.

        Args:
            spec: the participants.
            names: participants who get a new kit.
            password: of the alliance's root key.

        Raises:
            AllianceError: a participant has no kit or is revoked, the password is wrong, or ``spec`` is of another
                alliance.
        """
        self._require_renewable(spec, names)
        own = [name for name in names if spec.makes_own_key(name)]
        if own:
            raise AllianceError(
                f"{', '.join(own)}: own_key in alliance.yaml. They ask anew: oncofed site request; you answer with: "
                "oncofed alliance approve --renew"
            )
        yield from self._make_kits(spec, Authority.load(self.home, password), list(names))

    def approve(self, spec: AllianceSpec, request: CertificateRequest, password: str, again: bool = False) -> SealedKit:
        """Answer a certificate request.

        The answer is a kit without a private key, sealed for the applicant.

        Args:
            spec: the participants, among them the applicant.
            request: what the applicant sent.
            password: of the alliance's root key.
            again: the applicant has a kit and gets a second certificate.

        Raises:
            AllianceError: the applicant is not in ``spec``, is a relay, or has a kit and ``again`` is False.
        """
        name = request.participant
        if name not in spec.everybody or name in spec.relays:
            takers = ", ".join(other for other in spec.everybody if other not in spec.relays)
            raise AllianceError(f"{name} is nobody who can ask for a certificate. Those of the alliance: {takers}")
        kind = describe(spec, name)[0]
        if request.kind != kind:
            raise AllianceError(f"{name} asks as a {request.kind}, but is a {kind} in the alliance")
        if again:
            self._require_renewable(spec, [name])
        elif not self.exists:
            raise AllianceError(f"{self.home} holds no alliance. Found it first: oncofed alliance provision")
        else:
            self._require_same_alliance(spec, self.issued())
            if name in self.issued().participants:
                raise AllianceError(f"{name} has a kit already. Where it asks for a new certificate: --renew")
        (sealed,) = self._make_kits(spec, Authority.load(self.home, password), [name], request)
        return sealed

    def _require_renewable(self, spec: AllianceSpec, names: Sequence[str]) -> None:
        issued = self.issued()
        self._require_same_alliance(spec, issued)
        for name in names:
            if name not in issued.participants or name not in spec.everybody:
                raise AllianceError(f"{name} has no kit yet. Make one with: oncofed alliance provision")
            if issued.participants[name].revoked:
                raise AllianceError(f"{name} is revoked. Who comes back takes another name.")

    def revoke(self, name: str, password: str) -> Path:
        """Revoke a participant, and return the signed revocation list.

        A revoked name is never used again: FLARE identifies sites by name, not by key.

        Raises:
            AllianceError: the name is unknown, or the server's.
        """
        issued = self.issued()
        participant = issued.participants.get(name)
        if participant is None:
            raise AllianceError(f"nobody is called {name}; there are {', '.join(issued.participants)}")
        if participant.kind == "server":
            raise AllianceError(f"{name} is the server: stop it, and found a new alliance where its key was stolen")
        authority = Authority.load(self.home, password)
        if participant.revoked is None:
            now = datetime.now(timezone.utc).replace(microsecond=0)
            changed = {**issued.participants, name: participant.model_copy(update={"revoked": now})}
            issued = issued.model_copy(update={"participants": changed, "lists": issued.lists + 1})
            self._write(issued)
        names = frozenset(other for other, entry in issued.participants.items() if entry.revoked)
        revoked = Revoked(issued.lists, names)
        write_private(self.home / REVOKED_FILE, revoked_file(revoked, authority.sign(revoked.signed_part())))
        return self.home / REVOKED_FILE

    def _require_same_alliance(self, spec: AllianceSpec, issued: IssuedCertificates) -> None:
        for what in ("name", "server", "port"):
            old, new = getattr(issued, what), getattr(spec, what)
            if old != new:
                raise AllianceError(
                    f"{what}: found {new!r}, but the alliance in {self.home} and all its kits have {old!r}. Put it "
                    "back, or found a new alliance with another --home."
                )
        changed = [
            name
            for name, entry in issued.participants.items()
            if name in spec.everybody and describe(spec, name) != (entry.kind, entry.role, entry.organisation)
        ]
        if changed:
            raise AllianceError(
                f"{', '.join(changed)}: kind, role or organisation differ from the certificate that was given out. Put "
                "them back, or take another name."
            )

    def _make_kits(
        self, spec: AllianceSpec, authority: Authority, names: list[str], request: CertificateRequest | None = None
    ) -> Iterator[SealedKit]:
        (self.home / KITS_FOLDER).mkdir(exist_ok=True, mode=0o700)
        # Keys are in plain text here until their kits are sealed: inside the alliance's folder, deleted on exit.
        with tempfile.TemporaryDirectory(dir=self.home, prefix=".making-") as temporary:
            public_keys = {request.participant: request.public_key} if request else {}
            folder = provision(spec, Path(temporary), authority, names, public_keys)
            for name in names:
                add_contents(folder / name, spec, name, authority)
                sign_folder(folder / name, authority)
            recipients = {name: spec.recipient_of(name) for name in names}
            if request:
                recipients[request.participant] = request.recipient
            yield from self._seal_all(spec, folder, recipients)

    def _seal_all(self, spec: AllianceSpec, folder: Path, recipients: Mapping[str, str | None]) -> Iterator[SealedKit]:
        """Seal kits, those with a password in parallel.

        age spends about a second on each, by design.
        """
        passwords = {name: new_password() for name, recipient in recipients.items() if recipient is None}
        with ExitStack() as stack:
            jobs: dict[str, Future[None]] = {}
            if len(passwords) > 1:
                count = min(len(passwords), os.cpu_count() or 1)
                pool = stack.enter_context(ProcessPoolExecutor(count, get_context("spawn")))
                jobs = {n: pool.submit(seal, folder / n, self._file(n), p) for n, p in passwords.items()}
            for name, recipient in recipients.items():
                if name in jobs:
                    jobs[name].result()
                else:
                    seal(folder / name, self._file(name), passwords.get(name), recipient)
                self._record(spec, name, folder / name, recipient or "password")
                yield SealedKit(name, describe(spec, name)[0], self._file(name), passwords.get(name))

    def _file(self, name: str) -> Path:
        return self.home / KITS_FOLDER / f"{name}{KIT_SUFFIX}"

    def _record(self, spec: AllianceSpec, name: str, kit: Path, sealed_for: str) -> None:
        """List a new certificate.

        A kit missing from the list is made again.
        """
        facts = read_facts(kit)
        certificate = facts.certificate(kit)
        assert common_name(certificate) == name
        kind, role, organisation = describe(spec, name)
        new = IssuedCertificate(
            serial=f"{certificate.serial_number:x}",
            fingerprint=fingerprint(certificate),
            made=datetime.now(timezone.utc).replace(microsecond=0),
            until=certificate.not_valid_after_utc,
            oncofed=facts.oncofed,
        )
        issued = self.issued()
        before = issued.participants.get(name)
        participant = Participant(
            kind=kind,
            role=role,
            organisation=organisation,
            kit=self._file(name).name,
            sealed_for=sealed_for,
            certificates=(*(before.certificates if before else ()), new),
        )
        self._write(issued.model_copy(update={"participants": {**issued.participants, name: participant}}))

    def _write(self, issued: IssuedCertificates) -> None:
        text = issued.model_dump_json(indent=2, by_alias=True) + "\n"
        write_private(self.home / ISSUED_FILE, text.encode())
