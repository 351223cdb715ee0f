"""Writes each claim's status into the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu_checks.claims import CLAIMS, Claim
from gpu_checks.results import Run, read_runs

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
TABLE = ROOT / "benchmarks" / "README.md"
_BEGIN, _END = "<!-- GPU claims: written by `make bench-table` -->\n", "<!-- end of GPU claims -->\n"
# A link to a claim's row: words before the status, the status, the table's path, the claim.
LINK = re.compile(r"\[((?:[^\]]*: )?)(not confirmed|confirmed|refuted)\]\(([^)#]*)#gpu-([a-z0-9-]+)\)")
_WORDS = {"CONFIRMED": "confirmed", "REFUTED": "refuted"}


def documents() -> Iterator[Path]:
    """Yield documents with claims about GPUs."""
    yield ROOT / "README.md"
    yield ROOT / "workspace" / "README.md"  # the rest there is made
    for folder in ("docs", "jobs", "custom", "provisioning", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.md"))


def status(claim: Claim, runs: Sequence[Run]) -> tuple[str, Run | None]:
    """Return a claim's status, by its latest run."""
    for run in reversed(runs):
        word = _WORDS.get(run.verdict(claim))
        if word:
            return word, run
    return "not confirmed", None


def with_claims(text: str, runs: Sequence[Run]) -> str:
    """Return the README's text with the table of claims."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    rows = ["| claim | check | status |", "|---|---|---|"]
    for claim in CLAIMS:
        word, run = status(claim, runs)
        told = f"{word}, {_machine(run)}" if run else "open" if claim.target else word
        kind = "target: " if claim.target else ""
        rows.append(f'| <a id="gpu-{claim.name}"></a>{kind}{claim.says} | `{claim.check}` | {told} |')
    table = "\n".join(rows)
    return f"{before}{_BEGIN}\n{table}\n\n{_END}{after}"


def with_statuses(text: str, runs: Sequence[Run]) -> str:
    """Return a document with the status at its claims."""
    known = {claim.name: claim for claim in CLAIMS}

    def written(link: re.Match[str]) -> str:
        about, _, path, name = link.groups()
        return f"[{about}{status(known[name], runs)[0]}]({path}#gpu-{name})"

    return LINK.sub(written, text)


def write() -> None:
    """Write the table and the statuses."""
    runs = read_runs(RESULTS)
    for path in documents():
        text = path.read_text(encoding="utf-8")
        new = with_statuses(with_claims(text, runs) if path == TABLE else text, runs)
        if new != text:
            path.write_text(new, encoding="utf-8")


def _machine(run: Run) -> str:
    known = run.header.environment
    gpu = ", ".join(known.get("gpus") or [known.get("device", "")])
    return f"{gpu}, torch {known.get('torch')}, {run.header.started[:10]}, commit {run.header.commit}"
