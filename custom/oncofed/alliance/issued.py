"""An alliance's own folder: its root, its sealed kits, and the list of what was issued to whom."""

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
from oncofed.alliance.request import Request
from oncofed.alliance.sealing import new_password, seal, sign_folder
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import AllianceError
from oncofed.flare.security.revocation import REVOKED_FILE, Revoked, revoked_file
from oncofed.private_files import write_private
from oncofed.settings import StrictModel

REGISTER_FILE = "alliance.json"
KITS_FOLDER = "kits"
SUFFIX = ".kit.age"


class Issued(StrictModel):
    """A certificate that the alliance gave out."""

    serial: str = Field(description="hexadecimal")
    fingerprint: str
    made: datetime
    until: datetime
    oncofed: str = Field("", description="version that made the kit")


class Participant(StrictModel):
    """Somebody who takes part, and what they were given."""

    kind: Kind
    role: str | None = None
    organisation: str
    kit: str = Field(description="file in the folder kits")
    sealed_for: str = Field(description='"password", or an age recipient')
    certificates: tuple[Issued, ...]
    revoked: datetime | None = None


class IssuedCertificates(StrictModel):
    """``alliance.json``: nothing in it is secret."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    server: str
    port: int
    root_fingerprint: str
    participants: dict[str, Participant] = Field(default_factory=dict)
    lists: int = Field(0, description="how many lists of revoked names were signed")


@dataclass(frozen=True)
class Sealed:
    """A kit that was made.

    Attributes:
        name: whose it is.
        kind: of participant.
        file: the sealed kit.
        password: opens it; None where a recipient's key does.
    """

    name: str
    kind: Kind
    file: Path
    password: str | None


class Alliance:
    """An alliance's own folder, which only its project admin can enter.

    Args:
        home: the folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def exists(self) -> bool:
        """Whether an alliance was founded here."""
        return Authority.is_in(self.home)

    def register(self) -> IssuedCertificates:
        """Return what was issued.

        Raises:
            AllianceError: there is no alliance here, or its list is broken.
        """
        path = self.home / REGISTER_FILE
        try:
            return IssuedCertificates.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise AllianceError(
                f"{self.home} holds no alliance. Found one with: oncofed alliance provision alliance.yaml --home "
                f"{self.home}"
            ) from None
        except (ValueError, ValidationError) as error:
            raise AllianceError(f"{path} is broken ({type(error).__name__}). Restore it from a backup.") from None

    def without_kit(self, spec: AllianceSpec) -> list[str]:
        """Return who has no kit yet and is to be made one."""
        known = self.register().participants if self.exists else {}
        return [name for name in spec.everybody if name not in known and not spec.makes_own_key(name)]

    def ending(self, spec: AllianceSpec, days: int) -> list[str]:
        """Return whose certificates end within so many days, of those who are not revoked."""
        before = datetime.now(timezone.utc) + timedelta(days=days)
        known = self.register().participants.items()
        return [
            name
            for name, given in known
            if name in spec.everybody
            and not spec.makes_own_key(name)
            and not given.revoked
            and given.certificates[-1].until < before
        ]

    def issue(self, spec: AllianceSpec, password: str) -> Iterator[Sealed]:
        """Found the alliance where there is none, and make kits for those who have none; other kits stay as they are.

        Args:
            spec: who takes part.
            password: of the alliance's root.

        Yields:
            each kit once it is sealed and listed. Its password is kept nowhere else.

        Raises:
            AllianceError: the password is wrong, or the specification is of another alliance.
        """
        if self.exists:
            self._require_same(spec, self.register())
            authority = Authority.load(self.home, password)
        else:
            authority = self._found(spec, password)
        new = self.without_kit(spec)
        if new:
            yield from self._make(spec, authority, new)

    def renew(self, spec: AllianceSpec, names: Sequence[str], password: str) -> Iterator[Sealed]:
        """Make new kits, with new keys, for some who have one. The certificates that they have hold on to their end.

        Args:
            spec: who takes part.
            names: whose kits.
            password: of the alliance's root.

        Raises:
            AllianceError: one has no kit or is revoked, the password is wrong, or ``spec`` is of another alliance.
        """
        self._require_renewable(spec, names)
        own = [name for name in names if spec.makes_own_key(name)]
        if own:
            raise AllianceError(
                f"{', '.join(own)}: own_key in alliance.yaml. They ask anew: oncofed site request; you answer with: "
                "oncofed alliance approve --renew"
            )
        yield from self._make(spec, Authority.load(self.home, password), list(names))

    def approve(self, spec: AllianceSpec, request: Request, password: str, again: bool = False) -> Sealed:
        """Answer a participant who made its own private key: make a kit without one, for that participant alone.

        Args:
            spec: who takes part; the participant must be in it.
            request: what the participant sent.
            password: of the alliance's root.
            again: the participant has a kit already, and is given a new certificate beside the one that it has.

        Raises:
            AllianceError: it is not in ``spec``, is a relay, or has a kit and this is not ``again``.
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
            self._require_same(spec, self.register())
            if name in self.register().participants:
                raise AllianceError(f"{name} has a kit already. Where it asks for a new certificate: --renew")
        (sealed,) = self._make(spec, Authority.load(self.home, password), [name], request)
        return sealed

    def _require_renewable(self, spec: AllianceSpec, names: Sequence[str]) -> None:
        register = self.register()
        self._require_same(spec, register)
        for name in names:
            if name not in register.participants or name not in spec.everybody:
                raise AllianceError(f"{name} has no kit yet. Make one with: oncofed alliance provision")
            if register.participants[name].revoked:
                raise AllianceError(f"{name} is revoked. Who comes back takes another name.")

    def revoke(self, name: str, password: str) -> Path:
        """Take somebody's certificates out of force, and return the signed list that the server is to be given.

        A name that was revoked is not given again: FLARE knows sites by their name, not by the key that they show.

        Raises:
            AllianceError: nobody has that name, it is the server's, or it is revoked already.
        """
        register = self.register()
        participant = register.participants.get(name)
        if participant is None:
            raise AllianceError(f"nobody is called {name}; there are {', '.join(register.participants)}")
        if participant.kind == "server":
            raise AllianceError(f"{name} is the server: stop it, and found a new alliance where its key was stolen")
        authority = Authority.load(self.home, password)
        if participant.revoked is None:
            now = datetime.now(timezone.utc).replace(microsecond=0)
            changed = {**register.participants, name: participant.model_copy(update={"revoked": now})}
            register = register.model_copy(update={"participants": changed, "lists": register.lists + 1})
            self._write(register)
        names = frozenset(other for other, entry in register.participants.items() if entry.revoked)
        out = Revoked(register.lists, names)
        write_private(self.home / REVOKED_FILE, revoked_file(out, authority.sign(out.signed_part())))
        return self.home / REVOKED_FILE

    def _found(self, spec: AllianceSpec, password: str) -> Authority:
        """Write root and list before any certificate is given out: without its root a kit could never be renewed."""
        if self.home.exists() and any(self.home.iterdir()):
            raise AllianceError(f"{self.home} is not empty and holds no alliance. Name another folder with --home.")
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)
        authority = Authority.new(spec.name)
        root = fingerprint(authority.certificate)
        self._write(IssuedCertificates(name=spec.name, server=spec.server, port=spec.port, root_fingerprint=root))
        authority.save(self.home, password)
        return authority

    def _require_same(self, spec: AllianceSpec, register: IssuedCertificates) -> None:
        for what in ("name", "server", "port"):
            old, new = getattr(register, what), getattr(spec, what)
            if old != new:
                raise AllianceError(
                    f"{what}: found {new!r}, but the alliance in {self.home} and all its kits have {old!r}. Put it "
                    "back, or found a new alliance with another --home."
                )
        changed = [
            name
            for name, given in register.participants.items()
            if name in spec.everybody and describe(spec, name) != (given.kind, given.role, given.organisation)
        ]
        if changed:
            raise AllianceError(
                f"{', '.join(changed)}: kind, role or organisation differ from the certificate that was given out. Put "
                "them back, or take another name."
            )

    def _make(
        self, spec: AllianceSpec, authority: Authority, names: list[str], request: Request | None = None
    ) -> Iterator[Sealed]:
        (self.home / KITS_FOLDER).mkdir(exist_ok=True, mode=0o700)
        # Keys are readable here until their kits are sealed: in the alliance's own folder, and gone when this is left.
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

    def _seal_all(self, spec: AllianceSpec, folder: Path, recipients: Mapping[str, str | None]) -> Iterator[Sealed]:
        """Seal kits, those with a password side by side: age takes about a second for each, on purpose."""
        passwords = {name: new_password() for name, recipient in recipients.items() if recipient is None}
        with ExitStack() as stack:
            jobs: dict[str, Future[None]] = {}
            if len(passwords) > 1:
                count = min(len(passwords), os.cpu_count() or 1)
                pool = stack.enter_context(ProcessPoolExecutor(count, get_context("spawn")))
                jobs = {n: pool.submit(seal, folder / n, self._file(n), word) for n, word in passwords.items()}
            for name, recipient in recipients.items():
                if name in jobs:
                    jobs[name].result()
                else:
                    seal(folder / name, self._file(name), passwords.get(name), recipient)
                self._add(spec, name, folder / name, recipient or "password")
                yield Sealed(name, describe(spec, name)[0], self._file(name), passwords.get(name))

    def _file(self, name: str) -> Path:
        return self.home / KITS_FOLDER / f"{name}{SUFFIX}"

    def _add(self, spec: AllianceSpec, name: str, kit: Path, sealed_for: str) -> None:
        """Note what was issued, one by one: a kit that is not in the list is made again."""
        facts = read_facts(kit)
        certificate = facts.certificate(kit)
        assert common_name(certificate) == name
        kind, role, organisation = describe(spec, name)
        issued = Issued(
            serial=f"{certificate.serial_number:x}",
            fingerprint=fingerprint(certificate),
            made=datetime.now(timezone.utc).replace(microsecond=0),
            until=certificate.not_valid_after_utc,
            oncofed=facts.oncofed,
        )
        register = self.register()
        before = register.participants.get(name)
        participant = Participant(
            kind=kind,
            role=role,
            organisation=organisation,
            kit=self._file(name).name,
            sealed_for=sealed_for,
            certificates=(*(before.certificates if before else ()), issued),
        )
        self._write(register.model_copy(update={"participants": {**register.participants, name: participant}}))

    def _write(self, register: IssuedCertificates) -> None:
        text = register.model_dump_json(indent=2, by_alias=True) + "\n"
        write_private(self.home / REGISTER_FILE, text.encode())
