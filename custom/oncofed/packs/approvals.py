"""A site's approved packs.

``local/code.json`` by digest, with the packs next to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from cryptography import x509
from pydantic import Field, TypeAdapter, ValidationError

from oncofed.audit import RECEIVED
from oncofed.errors import PolicyError, SpecError
from oncofed.packs.pack import PACK_SUFFIX, Pack, read_pack
from oncofed.private_files import write_private
from oncofed.sandbox import what_is_missing
from oncofed.settings import StrictModel
from oncofed.signing import signature_problems, signer

APPROVALS_FILE = "code.json"
PACKS_FOLDER = "code"
State = Literal["approved", "rejected", "withdrawn"]
# Whoever may submit could otherwise fill a site's disk.
_MOST_KEPT = 100


class Decision(StrictModel):
    """A site's decision about a pack."""

    name: str
    state: State
    at: datetime
    by: str
    reason: str = Field(min_length=1)


_DECISIONS = TypeAdapter(dict[str, Decision])


def read_decisions(local: Path) -> dict[str, Decision]:
    """Return a site's decisions by digest; empty before the first.

    Args:
        local: the kit's folder of that name.

    Raises:
        PolicyError: the file is broken: no pack may run.
    """
    try:
        return _DECISIONS.validate_json((local / APPROVALS_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise PolicyError(f"its decisions about code are broken ({type(error).__name__}): no pack runs there") from None


def write_decision(local: Path, pack: Pack, state: State, by: str, reason: str) -> None:
    """Write a decision, replacing an earlier one."""
    now = datetime.now(timezone.utc)
    decisions = {
        **read_decisions(local),
        pack.digest: Decision(name=pack.name, state=state, at=now, by=by, reason=reason),
    }
    text = json.dumps(_DECISIONS.dump_python(decisions, mode="json"), indent=2) + "\n"
    write_private(local / APPROVALS_FILE, text.encode())


def refusal_of(local: Path, pack: Pack) -> str | None:
    """Return why a pack may not run, or None.

    In words that may leave the site.
    """
    decision = read_decisions(local).get(pack.digest)
    if decision is not None and decision.state == "approved":
        return None
    state = f"was {decision.state}" if decision else "is not approved"
    return f"the pack {pack.name} ({pack.digest[:12]}…) {state} there: its admin looks at it with `oncofed site review`"


def refusal_at_site(kit: Path, pack: Pack, record: Callable[..., object]) -> str | None:
    """Return why a job's pack may not run, as ``refusal_of``.

    One signed by a member of the alliance is kept for the site's admin to review.

    Args:
        kit: of the site.
        pack: that came.
        record: writes to the site's audit log, with what happened and facts of it by name.

    Raises:
        PolicyError: too many wait already, or its decisions are broken.
    """
    if what_is_missing():
        return "it cannot confine a process, and runs no pack without that"
    reason = refusal_of(kit / "local", pack)
    if reason is None:
        return None
    problems = pack_problems(pack, kit / "startup")
    if problems:
        return f"the pack {pack.name} is not one that somebody of the alliance signed: {problems[0]}"
    keep_pack(kit, pack, record)
    return reason


def pack_problems(pack: Pack, startup: Path) -> list[str]:
    """Return why a pack's signature is not of the alliance."""
    root = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
    return signature_problems(pack.signature, pack.manifest, root)


def keep_pack(kit: Path, pack: Pack, record: Callable[..., object]) -> None:
    """Keep a pack for review, and record a new one.

    Args:
        kit: of the site.
        pack: by any submitter.
        record: see ``refusal_at_site``.

    Raises:
        PolicyError: too many wait already.
    """
    folder = kit / PACKS_FOLDER
    path = folder / f"{pack.digest}{PACK_SUFFIX}"
    if path.is_file():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    if sum(1 for _ in folder.iterdir()) >= _MOST_KEPT:
        raise PolicyError(f"{_MOST_KEPT} packs wait there already: its admin has to decide about some")
    write_private(path, pack.content)
    record(RECEIVED, pack=pack.digest, name=pack.name, pack_by=made_by(pack))


def kept_packs(kit: Path) -> list[Pack]:
    """Return the packs that a site has, the oldest first."""
    paths = sorted((kit / PACKS_FOLDER).glob(f"*{PACK_SUFFIX}"), key=lambda path: path.stat().st_mtime)
    return [read_pack(path.read_bytes(), path.name) for path in paths]


def kept_pack(kit: Path, digest: str) -> Pack:
    """Return a pack by its digest or digest prefix.

    Raises:
        SpecError: there is none, or several.
    """
    found = [pack for pack in kept_packs(kit) if pack.digest.startswith(digest)]
    if len(found) != 1:
        known = ", ".join(f"{pack.name} {pack.digest[:12]}" for pack in kept_packs(kit)) or "none"
        raise SpecError(f"{len(found)} packs here begin with {digest!r}; here are: {known}")
    return found[0]


def made_by(pack: Pack) -> str:
    """Return a pack's signer, by its certificate."""
    return signer(pack.signature) or "nobody"
