"""A site's policy: show, change, compare versions."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel

from oncofed.algorithms import algorithm_names
from oncofed.alliance.facts import read_facts
from oncofed.audit import AuditLog
from oncofed.errors import AllianceError, SpecError
from oncofed.privacy.policy import POLICY_FILE, Policy, read_policy
from oncofed.private_files import write_private
from oncofed.settings import StrictModel, read_yaml, validated

CHANGED = "policy changed"
VERSIONS_FOLDER = "policy"
_SHORTEST_REASON = 8


def current_policy(folder: Path) -> Policy:
    """Return the policy in force.

    Raises:
        AllianceError: the folder is not a site's kit.
        PolicyError: the policy is broken.
    """
    facts = read_facts(folder)
    policy = read_policy(folder / "local") if facts.kind == "site" else None
    if policy is None:
        raise AllianceError(
            f"{folder} is the kit of a {facts.kind}, or of an earlier version: it has no policy. Expected a site's"
        )
    return policy


def policy_text(policy: Policy) -> str:
    """Return a policy as YAML, each setting with its description."""
    return "\n".join(["# What may run at this site, and what may leave it.", *_lines(policy, "")]) + "\n"


def change_policy(folder: Path, file: Path, reason: str) -> tuple[Policy, int]:
    """Set the policy for future jobs.

    Returns it with its version.

    Args:
        folder: the site's kit.
        file: the policy as YAML.
        reason: for the audit log.

    Raises:
        SpecError: not valid, has unknown names, changes nothing, or has no reason.
        AuditError: the change cannot be recorded; the old policy stays.
    """
    before = current_policy(folder)
    policy = parse_policy(file)
    if policy == before:
        raise SpecError(f"{file}: it says what the policy in force says; nothing was changed")
    reason = checked_reason(reason)
    kept = len(policy_versions(folder))
    if not kept:
        _keep(folder, 1, before)
    number = max(kept, 1) + 1
    AuditLog(folder).write(CHANGED, version=number, policy=policy.digest, before=before.digest, reason=reason)
    _keep(folder, number, policy)
    write_private(folder / "local" / POLICY_FILE, (policy.model_dump_json(indent=2, by_alias=True) + "\n").encode())
    return policy, number


def checked_reason(reason: str) -> str:
    """Return a reason, stripped, for the audit log.

    Raises:
        SpecError: too short.
    """
    if len(reason.strip()) < _SHORTEST_REASON:
        raise SpecError(f"--reason {reason!r}: expected a sentence that an auditor understands")
    return reason.strip()


def parse_policy(file: Path) -> Policy:
    """Read a policy from YAML.

    Raises:
        SpecError: one line for each mistake.
    """
    from oncofed.models import list_networks  # noqa: PLC0415 - torch takes seconds, and showing a policy needs none

    values, lines = read_yaml(file, "networks: [unet]")
    policy = validated(Policy, values, str(file), lines, "settings")
    known = {"networks": sorted(network.name for network in list_networks()), "strategies": algorithm_names()}
    for rule, names in known.items():
        for pattern in getattr(policy, rule) or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                close = difflib.get_close_matches(pattern, names, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise SpecError(
                    f"{file}:{lines.get((rule,), 1)}: {rule}: {pattern!r} fits none of {', '.join(names)}{hint}"
                )
    return policy


def policy_versions(folder: Path) -> list[Path]:
    """Return the files of all past policies, oldest first.

    Empty before the first change.
    """
    return sorted((folder / VERSIONS_FOLDER).glob("[0-9]*.yaml"))


def policy_version(folder: Path) -> int:
    """Return the version of the policy in force."""
    return max(len(policy_versions(folder)), 1)


def policy_difference(folder: Path, one: int | None = None, other: int | None = None) -> str:
    """Return a unified diff of two versions.

    By default of the last two.

    Raises:
        SpecError: no such version.
    """
    versions = policy_versions(folder)
    if len(versions) < 2:
        return ""
    numbers = (one or len(versions) - 1, other or len(versions))
    for number in numbers:
        if not 1 <= number <= len(versions):
            raise SpecError(f"version {number}: there are {len(versions)}")
    before, after = (versions[number - 1].read_text(encoding="utf-8").splitlines() for number in numbers)
    names = [f"version {number}" for number in numbers]
    return "\n".join(difflib.unified_diff(before, after, names[0], names[1], lineterm="", n=1))


def _keep(folder: Path, number: int, policy: Policy) -> None:
    (folder / VERSIONS_FOLDER).mkdir(mode=0o700, exist_ok=True)
    write_private(folder / VERSIONS_FOLDER / f"{number:04}.yaml", policy_text(policy).encode())


def _lines(model: BaseModel, indent: str) -> list[str]:
    lines = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        key = field.alias or name
        if isinstance(value, StrictModel):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
            continue
        shown = (
            "null" if value is None else f"[{', '.join(map(_quoted, value))}]" if isinstance(value, tuple) else value
        )
        lines.append(f"{indent}{f'{key}: {shown}':<28}  # {field.description or ''}")
    return lines


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
