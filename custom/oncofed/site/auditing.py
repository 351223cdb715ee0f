"""An auditor's view of an audit log: verification and export."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from oncofed.alliance.facts import read_facts
from oncofed.audit import ADMITTED, ANCHORED, HELD_BACK, LEFT, REFUSED, RESTORED, Anchor, AuditLog, Problem
from oncofed.errors import PolicyError, SpecError
from oncofed.privacy.ledger import Ledger, Restored

_COLUMNS = ("n", "time", "who", "what")
# Of a file of anchors, beside the sites; no site's name begins so.
_EXPORTED, _RESTORED = "_exported", "_restored"
# Facts of an entry that admits or refuses a job.
_OF_DECISIONS = ("name", "rule", "dataset", "network", "strategy", "code", "pack", "policy")


@dataclass
class LoggedJob:
    """A job's summary from the log.

    Attributes:
        id: FLARE's.
        messages: that left the site.
        bytes: of these messages.
        held: messages held back.
        decision: ``ADMITTED`` or ``REFUSED``; None if the log has neither.
        person: who submitted it.
        time: of the decision.
        name: of the job.
        rule: of the policy that it broke, if refused.
        dataset: digest.
        network: that it trains.
        strategy: of the rounds.
        code: version of oncofed that decided.
        pack: digest of the code that it brought.
        policy: digest of the policy in force.
    """

    id: str
    messages: int = 0
    bytes: int = 0
    held: int = 0
    decision: str | None = None
    person: str | None = None
    time: str | None = None
    name: str | None = None
    rule: str | None = None
    dataset: str | None = None
    network: str | None = None
    strategy: str | None = None
    code: str | None = None
    pack: str | None = None
    policy: str | None = None


def site_anchors(folder: Path) -> dict[str, list[str]]:
    """Return each site's last lines that the server recorded, by site, from the server's own audit log.

    More than one, where a site's lines began anew at an earlier number: its log was put back, and lost some.
    """
    found: dict[str, list[Anchor]] = {}
    for entry in AuditLog(folder).entries():
        if entry["what"] == ANCHORED:
            lasts, anchor = found.setdefault(str(entry["who"]), []), Anchor.parse(str(entry["anchor"]))
            if lasts and anchor.number > lasts[-1].number:
                lasts[-1] = anchor
            elif anchor not in lasts:
                lasts.append(anchor)
    return {site: [str(anchor) for anchor in lasts] for site, lasts in found.items()}


def exported_anchors(folder: Path) -> dict[str, Any]:
    """Return what ``read_anchors`` reads: the sites' last lines, when they were exported, and from what log."""
    restored = [str(entry["time"]) for entry in AuditLog(folder).entries() if entry["what"] == RESTORED]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**site_anchors(folder), _EXPORTED: now, **({_RESTORED: restored[-1]} if restored else {})}


def require_later(file: Path, restored: Restored) -> None:
    """Refuse anchors that cannot tell what a site's backup lacks.

    Raises:
        PolicyError: they were exported before the site was put back, or the server was put back since its backup.
        SpecError: not such a file.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        exported, of_server = str(values[_EXPORTED]), str(values.get(_RESTORED, ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SpecError(f"{file}: it does not say when it was exported. Expected: oncofed site audit anchors") from None
    if datetime.fromisoformat(exported) < datetime.fromisoformat(restored.at):
        raise PolicyError(
            f"{file} is of {exported}, and this site was put back at {restored.at}: ask the server's admin for a new "
            "one"
        )
    if of_server and _time(of_server) > _time(restored.made):
        raise PolicyError(
            f"the server was put back as well, on {of_server}: its log lacks what it heard before. Say with --reason "
            "why nothing is missing"
        )


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def read_anchors(file: Path, participant: str) -> tuple[Anchor, ...]:
    """Read a participant's anchor from the server admin's file.

    Raises:
        SpecError: not such a file, or it lacks the participant.
    """
    try:
        anchors = json.loads(file.read_text(encoding="utf-8"))
        lasts = anchors[participant]
        return tuple(map(Anchor.parse, [lasts] if isinstance(lasts, str) else lasts))
    except KeyError:
        raise SpecError(f"{file}: it has no anchor of {participant}: the server never heard of its audit log") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SpecError(
            f"{file}: no anchors ({type(error).__name__}). Expected a file from the server: oncofed site audit anchors"
        ) from None


def verify(folder: Path, anchors: Path | None) -> tuple[list[Problem], Anchor | None]:
    """Return an audit log's problems, those of the ledger behind it, and its last line.

    Args:
        folder: the participant's kit.
        anchors: file from the server; without it a cut-off tail is not found.
    """
    known = read_anchors(anchors, read_facts(folder).participant) if anchors else ()
    problems, last = AuditLog(folder).verify(known)
    of_ledger, _ = Ledger(folder).verify()
    return [*problems, *(Problem(one.line, f"of the ledger: {one.what}") for one in of_ledger)], last


def entries(folder: Path, job: str | None = None, what: str | None = None) -> list[dict[str, Any]]:
    """Return a log's entries, oldest first.

    Of one job or kind, if given.
    """
    return [
        entry
        for entry in AuditLog(folder).entries()
        if (job is None or str(entry.get("job", "")).startswith(job)) and (what is None or what in str(entry["what"]))
    ]


def bytes_left(folder: Path) -> dict[str, dict[str, int]]:
    """Return the bytes that left a site.

    Day in UTC -> job -> bytes, oldest day first.
    """
    left: dict[str, dict[str, int]] = {}
    for entry in AuditLog(folder).entries():
        if entry["what"] == LEFT and "job" in entry:
            jobs = left.setdefault(str(entry["time"])[:10], {})
            jobs[entry["job"]] = jobs.get(entry["job"], 0) + int(entry.get("bytes", 0))
    return left


def summarise_jobs(rows: list[dict[str, Any]]) -> list[LoggedJob]:
    """Summarise each job in a log, oldest first."""
    jobs: dict[str, LoggedJob] = {}
    for entry in rows:
        if "job" in entry:
            job = jobs.setdefault(entry["job"], LoggedJob(entry["job"]))
            if entry["what"] in (ADMITTED, REFUSED):
                job.decision, job.person, job.time = entry["what"], entry["who"], entry["time"]
                for name in _OF_DECISIONS:
                    setattr(job, name, entry.get(name))
            elif entry["what"] == LEFT:
                job.messages += 1
                job.bytes += int(entry.get("bytes", 0))
            elif entry["what"] == HELD_BACK:
                job.held += 1
    return list(jobs.values())


def facts_text(entry: dict[str, Any], full: bool = False) -> str:
    """Return an entry's facts as text.

    Time, person and kind are left out.

    Args:
        entry: of the log.
        full: with complete digests; else they are shortened.
    """
    left_out = {*_COLUMNS, "hash", "previous"}
    parts = []
    for name, value in entry.items():
        if name in left_out or value is None:
            continue
        is_digest = not full and isinstance(value, str) and len(value) > 60 and value.replace(":", "").isalnum()
        parts.append(f"{name} {value[:20]}…" if is_digest else f"{name} {value}")
    return ", ".join(parts)


def export_csv(folder: Path, out: Path) -> int:
    """Write a log as CSV, one column per fact.

    Returns the number of entries.
    """
    rows = entries(folder)
    columns = list(dict.fromkeys([*_COLUMNS, *(name for row in rows for name in row)]))
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        # A spreadsheet would read these as formulas.
        table.writerows({k: f"'{v}" if str(v)[:1] in "=+-@\t\r" else v for k, v in row.items()} for row in rows)
    return len(rows)


def export_page(folder: Path, out: Path, anchors: Path | None) -> int:
    """Write a log as a self-contained HTML page.

    Returns the number of entries.
    """
    rows = entries(folder)
    problems, last = verify(folder, anchors)
    environment = Environment(loader=PackageLoader("oncofed.site"), autoescape=True, trim_blocks=True)
    text = environment.get_template("audit.html").render(
        facts=read_facts(folder),
        jobs=summarise_jobs(rows),
        rows=[(entry, facts_text(entry)) for entry in rows],
        problems=problems,
        last=last,
        anchored=anchors is not None,
    )
    out.write_text(text, encoding="utf-8")
    return len(rows)
