"""Who is no longer let in: a list that the alliance signs, in force on a running server within seconds."""

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
from oncofed.errors import AuditError, FederationError
from oncofed.flare.patches.authorization import wrap_authorizer
from oncofed.flare.patches.client_admission import check_clients
from oncofed.flare.security.archives import look_at_archives
from oncofed.signing import is_signed_by

REVOKED_FILE = "revoked.json"
_LONGEST_NAME = 100
_LOOK_SECONDS = 1.0


# Who was last allowed to submit a job in this thread: FLARE asks whether they may, then takes the job, and says who it
# was only afterwards.
_SUBMITTING: ContextVar[str | None] = ContextVar("submitting", default=None)


def submitting() -> str | None:
    """Return who submits the job that is being taken in this thread; None where that is not known."""
    return _SUBMITTING.get()


@dataclass(frozen=True)
class Revoked:
    """Names that are out.

    Attributes:
        number: of the list; a later one has a higher number.
        names: sites, relays and people.
    """

    number: int = 0
    names: frozenset[str] = frozenset()

    def signed_part(self) -> bytes:
        """Return what the alliance signs."""
        return json.dumps({"number": self.number, "revoked": sorted(self.names)}).encode()


def revoked_file(revoked: Revoked, signature: bytes) -> bytes:
    """Return the list as a server reads it."""
    values = {**json.loads(revoked.signed_part()), "signature": base64.b64encode(signature).decode()}
    return (json.dumps(values, indent=2) + "\n").encode()


def read_revoked(path: Path, root: x509.Certificate) -> Revoked:
    """Return the list in a file; nobody where there is none.

    Raises:
        FederationError: it is broken, or not signed by the alliance.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        revoked = Revoked(int(values["number"]), frozenset(map(str, values["revoked"])))
        signature = base64.b64decode(values["signature"])
    except FileNotFoundError:
        return Revoked()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FederationError(f"{path} is broken ({type(error).__name__})") from None
    if not is_signed_by(root, revoked.signed_part(), signature):
        raise FederationError(f"{path} is not signed by this alliance")
    return revoked


def list_and_root(fl_ctx: FLContext) -> tuple[Path, Path]:
    """Return where a server's list of revoked names and its root certificate lie."""
    workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
    return Path(workspace.get_site_config_dir()) / REVOKED_FILE, Path(workspace.get_startup_kit_dir()) / "rootCA.pem"


class RevocationList(FLComponent):
    """Keeps out who is on the alliance's list, in the server's main process.

    Sites are disabled as FLARE's own command does, which ends their session and refuses the next; a running job's own
    process keeps them out itself. FLARE knows nothing like it for people, so their rights are taken here. A list that
    is older, broken or not the alliance's changes nothing. Whoever comes, comes as what their certificate is for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self._revoked = Revoked()
        self._told = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin when the server has started, end with it."""
        if event_type == EventType.SYSTEM_START:
            path, certificate = list_and_root(fl_ctx)
            root = x509.load_pem_x509_certificate(certificate.read_bytes())
            audit = AuditLog(Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir()))
            wrap_authorizer(lambda authorizer: _WithoutRevoked(authorizer, self, audit))
            engine = fl_ctx.get_engine()
            tell_people_from_sites(engine.server.client_manager, audit)
            look_at_archives(lambda why: self.log_warning(fl_ctx, f"a job was refused: {why}", fire_event=False))
            self._look(engine, path, root, fl_ctx)
            watch = threading.Thread(target=self._watch, args=(engine, path, root), name="revocation", daemon=True)
            watch.start()
        elif event_type == EventType.SYSTEM_END:
            self._stop.set()

    def is_out(self, name: str) -> bool:
        """Return whether somebody is on the list; FLARE has names of people in lower case."""
        return name.lower() in {out.lower() for out in self._revoked.names}

    def _watch(self, engine: Any, path: Path, root: x509.Certificate) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            with engine.new_context() as fl_ctx:
                self._look(engine, path, root, fl_ctx)

    def _look(self, engine: Any, path: Path, root: x509.Certificate, fl_ctx: FLContext) -> None:
        try:
            found = read_revoked(path, root)
        except FederationError as error:
            # Who is out stays out; said once.
            if str(error) != self._told:
                self.log_error(fl_ctx, str(error), fire_event=False)
            self._told = str(error)
            return
        if found.number <= self._revoked.number:
            return
        new = found.names - self._revoked.names
        self._revoked = found
        for name in sorted(new):
            self.log_warning(fl_ctx, f"{name} is revoked by the alliance and no longer let in", fire_event=False)
            if "@" not in name:
                engine.disable_clients([name])


def tell_people_from_sites(manager: ClientManager, audit: AuditLog) -> None:
    """Let nobody take part as a site with a person's certificate, nor as a person with a site's; record who comes.

    FLARE looks at a certificate's signature and name, not at whom it was made for: with an engineer's key one would be
    given the model, and send updates, as one more site. Names of people are e-mail addresses, those of sites and relays
    never are; that a name is the certificate's own is FLARE's to check.
    """

    def is_let_in(name: str, as_person: bool, fl_ctx: FLContext) -> bool:
        is_person = "@" in name
        if is_person == as_person:
            return True
        why = f"{name} is {'a person, not a site' if is_person else 'a site, not a person'}"
        fl_ctx.set_prop(FLContextKey.UNAUTHENTICATED, why, sticky=False)
        manager.logger.warning("refused: %s", why)
        _written(audit, "refused to let in", name, why=why)
        return False

    # Nothing happens that is not recorded.
    check_clients(manager, is_let_in, lambda name, as_person: _written(audit, LET_IN, name, person=as_person))


def _written(audit: AuditLog, what: str, who: str, **facts: Any) -> bool:
    """Record something, and return whether that was possible."""
    try:
        audit.write(what, who[:_LONGEST_NAME], **facts)
    except AuditError as error:
        logging.getLogger(__name__).error(str(error))
        return False
    return True


class _WithoutRevoked(Authorizer):
    """FLARE's authorizer, but for people who are out; it records whatever is more than looking.

    Args:
        inner: decides about everybody else.
        gate: knows who is out.
        audit: the server's audit log.
    """

    def __init__(self, inner: Authorizer, gate: RevocationList, audit: AuditLog) -> None:
        super().__init__(inner.site_org, inner.right_categories)
        self._inner, self._gate, self._audit = inner, gate, audit

    def get_policy(self) -> Any:
        """Return the policy of everybody else."""
        return self._inner.get_policy()

    def load_policy(self, policy_config: Mapping[str, Any]) -> str:
        """Take another policy for everybody else."""
        return str(self._inner.load_policy(policy_config))

    def authorize(self, ctx: AuthzContext) -> tuple[bool, str]:
        """Return whether somebody may do what they ask for, and why not."""
        if ctx and self._gate.is_out(ctx.user.name):
            return False, f"{ctx.user.name} is revoked by the alliance"
        allowed, why = self._inner.authorize(ctx)
        if ctx and ctx.right == AdminCommandNames.SUBMIT_JOB:
            _SUBMITTING.set(str(ctx.user.name) if allowed else None)
        if ctx and COMMAND_CATEGORIES.get(ctx.right) != CommandCategory.VIEW:
            facts = {"command": str(ctx.right), "allowed": bool(allowed)}
            if not _written(self._audit, COMMANDED, str(ctx.user.name), **facts):
                return False, "the server cannot write its audit log, and does nothing unrecorded"
        return bool(allowed), str(why)
