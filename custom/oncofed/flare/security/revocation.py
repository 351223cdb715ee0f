"""Revoked sites and people: a list that the alliance signs.

A new list is in force on a running server within seconds.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import AdminCommandNames, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.authz import Authorizer, AuthzContext
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.security.security import COMMAND_CATEGORIES, CommandCategory

from oncofed.audit import COMMANDED, LET_IN, AuditLog
from oncofed.errors import AllianceError, AuditError
from oncofed.flare.folders import local_folder
from oncofed.flare.patches.authorization import wrap_authorizer
from oncofed.flare.patches.client_admission import check_clients
from oncofed.flare.security.archives import check_submissions
from oncofed.flare.security.recording import audit_log
from oncofed.signing import is_signed_by

REVOKED_FILE = "revoked.json"
_LONGEST_NAME = 100
_SECONDS_BETWEEN_READS = 1.0


# The person that may submit a job in this thread: FLARE authorizes first, then accepts the job, and names the person
# only afterwards.
_SUBMITTER: ContextVar[str | None] = ContextVar("submitter", default=None)


def submitter() -> str | None:
    """Return who submits this thread's job, if known."""
    return _SUBMITTER.get()


@dataclass(frozen=True)
class Revoked:
    """A list of revoked names.

    Attributes:
        number: of the list; a later list has a higher number.
        names: sites, relays and people.
    """

    number: int = 0
    names: frozenset[str] = frozenset()

    def signed_part(self) -> bytes:
        """Return the bytes that the alliance signs."""
        return json.dumps({"number": self.number, "revoked": sorted(self.names)}).encode()


def revoked_file(revoked: Revoked, signature: bytes) -> bytes:
    """Return the file that a server reads."""
    values = {**json.loads(revoked.signed_part()), "signature": base64.b64encode(signature).decode()}
    return (json.dumps(values, indent=2) + "\n").encode()


def read_revoked(path: Path, root: x509.Certificate) -> Revoked:
    """Return the list in a file; empty without a file.

    Raises:
        AllianceError: it is broken, or not signed by the alliance.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        revoked = Revoked(int(values["number"]), frozenset(map(str, values["revoked"])))
        signature = base64.b64decode(values["signature"])
    except FileNotFoundError:
        return Revoked()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AllianceError(f"{path} is broken ({type(error).__name__})") from None
    if not is_signed_by(root, revoked.signed_part(), signature):
        raise AllianceError(f"{path} is not signed by this alliance")
    return revoked


def list_and_root(fl_ctx: FLContext) -> tuple[Path, Path]:
    """Return the paths of a server's list and root certificate."""
    startup = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_startup_kit_dir())
    return local_folder(fl_ctx) / REVOKED_FILE, startup / "rootCA.pem"


class RevocationList(FLComponent):
    """Enforces the alliance's list of revoked names.

    Runs in the server's main process.

    Sites are disabled as by FLARE's own command, which ends their session and refuses the next; a running job's
    process excludes them itself. FLARE has no such command for people, so their rights are denied here. A list that is
    older, invalid or not signed by the alliance changes nothing. Certificates are also bound to a role:
    ``bind_certificates``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self._revoked = Revoked()
        self._logged = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Enforce it from the server's start to its end."""
        if event_type == EventType.SYSTEM_START:
            path, certificate = list_and_root(fl_ctx)
            root = x509.load_pem_x509_certificate(certificate.read_bytes())
            audit = audit_log(fl_ctx)
            wrap_authorizer(lambda authorizer: _WithoutRevoked(authorizer, self, audit))
            engine = fl_ctx.get_engine()
            bind_certificates(engine.server.client_manager, audit)
            check_submissions(lambda why: self.log_warning(fl_ctx, f"a job was refused: {why}", fire_event=False))
            self._refresh(engine, path, root, fl_ctx)
            watch = threading.Thread(target=self._watch, args=(engine, path, root), name="revocation", daemon=True)
            watch.start()
        elif event_type == EventType.SYSTEM_END:
            self._stop.set()

    def is_revoked(self, name: str) -> bool:
        """Return whether a name is on the list.

        FLARE converts names of people to lower case.
        """
        return name.lower() in {revoked.lower() for revoked in self._revoked.names}

    def _watch(self, engine: Any, path: Path, root: x509.Certificate) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_READS):
            with engine.new_context() as fl_ctx:
                self._refresh(engine, path, root, fl_ctx)

    def _refresh(self, engine: Any, path: Path, root: x509.Certificate, fl_ctx: FLContext) -> None:
        try:
            found = read_revoked(path, root)
        except AllianceError as error:
            # Revoked names stay revoked; the error is logged once.
            if str(error) != self._logged:
                self.log_error(fl_ctx, str(error), fire_event=False)
            self._logged = str(error)
            return
        if found.number <= self._revoked.number:
            return
        new = found.names - self._revoked.names
        self._revoked = found
        for name in sorted(new):
            self.log_warning(fl_ctx, f"{name} is revoked by the alliance and no longer let in", fire_event=False)
            if "@" not in name:
                engine.disable_clients([name])


def bind_certificates(manager: ClientManager, audit: AuditLog) -> None:
    """Bind certificates to a role, and record logins.

    Nobody joins as a site with a person's certificate, or logs in with a site's. FLARE checks a certificate's signature
    and name, but not its role: an engineer's key would receive the model, and send updates, as one more site. Names of
    people are e-mail addresses, those of sites and relays never are. FLARE checks that a name matches the certificate.

    Args:
        manager: of the server.
        audit: the server's audit log.
    """

    def may_enter(name: str, as_person: bool, fl_ctx: FLContext) -> bool:
        is_person = "@" in name
        if is_person == as_person:
            return True
        why = f"{name} is {'a person, not a site' if is_person else 'a site, not a person'}"
        fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, why, sticky=False)
        manager.logger.warning("refused: %s", why)
        _written(audit, "refused to let in", name, why=why)
        return False

    # Nobody enters without an entry in the log.
    check_clients(manager, may_enter, lambda name, as_person: _written(audit, LET_IN, name, person=as_person))


def _written(audit: AuditLog, what: str, who: str, **facts: Any) -> bool:
    """Write an entry; return whether that was possible."""
    try:
        audit.write(what, who[:_LONGEST_NAME], **facts)
    except AuditError as error:
        logging.getLogger(__name__).error(str(error))
        return False
    return True


class _WithoutRevoked(Authorizer):
    """FLARE's authorizer, which denies revoked people.

    It records each command that changes something.

    Args:
        inner: decides about everybody else.
        revocation: the list.
        audit: the server's audit log.
    """

    def __init__(self, inner: Authorizer, revocation: RevocationList, audit: AuditLog) -> None:
        super().__init__(inner.site_org, inner.right_categories)
        self._inner, self._revocation, self._audit = inner, revocation, audit

    def get_policy(self) -> Any:
        """Return the inner authorizer's policy."""
        return self._inner.get_policy()

    def load_policy(self, policy_config: Mapping[str, Any]) -> str:
        """Replace the inner authorizer's policy."""
        return str(self._inner.load_policy(policy_config))

    def authorize(self, ctx: AuthzContext) -> tuple[bool, str]:
        """Return whether a command is allowed, and why not."""
        if ctx and self._revocation.is_revoked(ctx.user.name):
            return False, f"{ctx.user.name} is revoked by the alliance"
        allowed, why = self._inner.authorize(ctx)
        if ctx and ctx.right == AdminCommandNames.SUBMIT_JOB:
            _SUBMITTER.set(str(ctx.user.name) if allowed else None)
        if ctx and COMMAND_CATEGORIES.get(ctx.right) != CommandCategory.VIEW:
            facts = {"command": str(ctx.right), "allowed": bool(allowed)}
            if not _written(self._audit, COMMANDED, str(ctx.user.name), **facts):
                return False, "the server cannot write its audit log, and does nothing unrecorded"
        return bool(allowed), str(why)
