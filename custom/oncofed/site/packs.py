"""A site admin's review of engineers' code: approve, reject, withdraw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oncofed.alliance.facts import read_facts
from oncofed.audit import AuditLog
from oncofed.errors import AllianceError, PolicyError, SpecError
from oncofed.packs.approvals import (
    Decision,
    State,
    keep_pack,
    kept_pack,
    kept_packs,
    made_by,
    pack_problems,
    read_decisions,
    write_decision,
)
from oncofed.packs.findings import Finding, difference, findings_of, imports_of
from oncofed.packs.pack import Pack, read_pack
from oncofed.processes import user_name
from oncofed.site.policies import checked_reason


@dataclass(frozen=True)
class Review:
    """The facts to decide about a pack.

    Attributes:
        pack: the code.
        by: its signer.
        problems: why the signature is not valid; empty if it is.
        decision: of the site so far; None: no decision yet.
        imports: modules from outside the pack.
        findings: of the static check.
        before: the last approved pack of that name, or None.
        changes: unified diff to ``before``; without one, all the code.
    """

    pack: Pack
    by: str
    problems: list[str]
    decision: Decision | None
    imports: list[str]
    findings: list[Finding]
    before: Pack | None
    changes: str


def import_pack(folder: Path, file: Path) -> Pack:
    """Store a pack that did not come with a job.

    Raises:
        SpecError: not a pack.
    """
    _require_site(folder)
    try:
        pack = read_pack(file.read_bytes(), str(file))
    except OSError as error:
        raise SpecError(f"{file}: {error.strerror}. Expected a pack: oncofed job pack") from None
    keep_pack(folder, pack, AuditLog(folder).write)
    return pack


def list_packs(folder: Path) -> list[tuple[Pack, Decision | None]]:
    """Return a site's packs with its decisions, oldest first."""
    _require_site(folder)
    decisions = read_decisions(folder / "local")
    return [(pack, decisions.get(pack.digest)) for pack in kept_packs(folder)]


def review(folder: Path, digest: str) -> Review:
    """Collect the facts about a pack.

    Args:
        folder: the site's kit.
        digest: of the pack, or its beginning.
    """
    _require_site(folder)
    pack = kept_pack(folder, digest)
    decisions = read_decisions(folder / "local")
    before = _last_approved(folder, pack)
    return Review(
        pack=pack,
        by=made_by(pack),
        problems=pack_problems(pack, folder / "startup"),
        decision=decisions.get(pack.digest),
        imports=imports_of(pack),
        findings=findings_of(pack),
        before=before,
        changes=difference(before, pack),
    )


def decide(folder: Path, digest: str, state: State, reason: str) -> Pack:
    """Approve, reject or withdraw a pack for future jobs.

    Recorded before it takes effect.

    Raises:
        SpecError: no such pack, or no reason.
        PolicyError: an approval of a pack that the alliance did not sign, or a withdrawal of one not approved.
    """
    found = review(folder, digest)
    reason = checked_reason(reason)
    if state == "approved" and found.problems:
        raise PolicyError(f"{found.pack.name} cannot be approved: {found.problems[0]}")
    if state == "withdrawn" and (found.decision is None or found.decision.state != "approved"):
        raise PolicyError(f"{found.pack.name} {found.pack.digest[:12]} is not approved: there is nothing to withdraw")
    by = user_name()
    AuditLog(folder).write(f"code {state}", by, pack=found.pack.digest, name=found.pack.name, reason=reason)
    write_decision(folder / "local", found.pack, state, by, reason)
    return found.pack


def _last_approved(folder: Path, pack: Pack) -> Pack | None:
    decisions = read_decisions(folder / "local")
    same = [p for p in kept_packs(folder) if p.name == pack.name and p.digest != pack.digest and p.digest in decisions]
    approved = [p for p in same if decisions[p.digest].state == "approved"]
    return max(approved, key=lambda p: decisions[p.digest].at, default=None)


def _require_site(folder: Path) -> None:
    facts = read_facts(folder)
    if facts.kind != "site":
        raise AllianceError(f"{folder} is the kit of a {facts.kind}: code runs at sites alone")
