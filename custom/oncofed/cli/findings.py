"""Output of data register and check.

It has counts, three examples per kind, and commands to type.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oncofed.cli.common import escape, plain_console, typed_workspace

if TYPE_CHECKING:
    from rich.console import Console

    from oncofed.data.answers import Answer
    from oncofed.data.contract import Report
    from oncofed.data.manifest import Entry, Manifest, Quarantined


def show_accounts(manifest: Manifest, folder: Path, dataset: str) -> None:
    """Print how each file of a registered folder was used.

    The last line counts the labels.

    Args:
        manifest: of the dataset.
        folder: of the dataset.
        dataset: its name as the user types it.
    """
    from oncofed.data.accounts import advice, by_weight, labelled_share, remedies
    from oncofed.data.decisions import decided, in_words, is_labelled
    from oncofed.data.files import FILES_TABLE, read_examples
    from oncofed.data.grouping import EXAMPLES, counted, named

    console = plain_console()
    for line in _set_aside(manifest.quarantine):
        console.print(line)
    for line in (*_masks_left_out(manifest.entries), *_left_unknown(manifest.entries)):
        console.print(line)
    cells = [bad.reason for bad in manifest.quarantine] + [
        why for one in manifest.entries for why in one.unread.values()
    ]
    for to_do in remedies(cells):
        console.print(f"  to do: {to_do}", markup=False)
    uses = ", ".join(_of_use(use, count) for use, count in manifest.files.items())
    console.print(f"files: {uses}; each by name in {folder / FILES_TABLE}", markup=False)
    examples = read_examples(folder, EXAMPLES)
    for reason, count in by_weight(manifest.left_out):
        console.print(f"[yellow]left out[/] {count:,}: {escape(reason)}: {escape(named(examples[reason], count))}")
        if to_do := advice(reason):
            console.print(f"  to do: {to_do}", markup=False)
    for remark in manifest.remarks:
        console.print(f"[yellow]seen[/] {escape(remark)}")
    for words in in_words(manifest):
        console.print(f"decided {words}", markup=False)
    console.print(f"Manifest: {folder / 'dataset.json'}", markup=False)
    check = shlex.join(["oncofed", "data", "check", "JOB", dataset, *typed_workspace()])
    console.print(f"Next:     {check}", markup=False)
    share, manifest = labelled_share(manifest), decided(manifest)
    without = sum(not is_labelled(entry) for entry in manifest.entries)
    why = f"; {counted(without, 'image')} without: {check} says why" if without else ""
    aside = f"; {counted(len(manifest.quarantine), 'more case')} set aside" if manifest.quarantine else ""
    console.print(f"{share}{aside}{why}", markup=False)


def show_findings(report: Report, job: str, dataset: str) -> None:
    """Print a check's findings by kind.

    Count, three examples, and the command that settles them.
    """
    from oncofed.data.accounts import remedies
    from oncofed.data.answers import answer_to, kind_of_reason
    from oncofed.data.contract import UNKNOWN
    from oncofed.data.grouping import by_kind, counted, finding_lines
    from oncofed.data.leaks import TELLS_OUTCOME

    console = plain_console()
    aside: dict[str, list[list[str]]] = {}
    for items in by_kind((p.case, p.what) for p in report.set_aside).values():
        aside.setdefault(kind_of_reason(items[0][1]), []).append(finding_lines(items))
    for kind, told in aside.items():
        for lines in told:
            _print_told(console, "red", "set aside", lines)
        _print_answer(console, answer_to(kind), dataset, job)
    for colour, label, findings in (("red", "found", report.findings), ("yellow", "warning", report.warnings)):
        kinds: dict[str, list[tuple[str, str]]] = {}
        for finding in findings:
            kinds.setdefault(finding.kind, []).append((finding.case or "", finding.what))
        for kind, items in kinds.items():
            _print_told(console, colour, f"{label}: {kind}", _of_kind(items))
            _print_answer(console, answer_to(kind) or _of_empty(items), dataset, job)
            if kind == TELLS_OUTCOME and colour == "red":
                console.print("  to go on: take it out of data.covariates in the job", markup=False)
    for to_do in remedies([p.what for p in report.set_aside] + [f.what for f in report.warnings if f.kind == UNKNOWN]):
        console.print(f"  to do: {to_do}", markup=False)
    if report.unlabelled:
        console.print(f"without a label: {counted(len(report.unlabelled), 'case')}", markup=False)
        for line in finding_lines((problem.case, problem.what) for problem in report.unlabelled):
            console.print(f"  {line}", markup=False)
    for remark in report.remarks:
        console.print(f"[yellow]seen[/] {escape(remark)}")
    for words in report.decided:
        console.print(f"decided {words}", markup=False)


def commands(report: Report, job: str, dataset: str) -> dict[str, str]:
    """Return kind of finding -> command that settles it.

    With the usual decision.
    """
    from oncofed.data.answers import answer_to, kind_of_reason

    kinds = [kind_of_reason(problem.what) for problem in report.set_aside]
    kinds += [finding.kind for finding in (*report.findings, *report.warnings)]
    if _of_empty((finding.case or "", finding.what) for finding in report.warnings):
        kinds.append("empty label")
    answers = {kind: answer_to(kind) for kind in dict.fromkeys(kinds)}
    return {kind: answer.command(dataset, job, typed_workspace()) for kind, answer in answers.items() if answer}


def _of_empty(items: Iterable[tuple[str, str]]) -> Answer | None:
    """Return the answer to the empty ones of masks that are left out."""
    from oncofed.data.answers import answer_to
    from oncofed.data.case_facts import EMPTY

    return answer_to("empty label") if any(what.startswith(EMPTY) for _, what in items) else None


def _of_use(use: str, count: int) -> str:
    from oncofed.data.grouping import counted

    return f"{count:,} {use}" if use in {"regions", "features", "left out"} else counted(count, use)


def _of_kind(items: list[tuple[str, str]]) -> list[str]:
    from oncofed.data.grouping import examples

    if len(items) == 1:
        return [f"{items[0][0]}: {items[0][1]}" if items[0][0] else items[0][1]]
    if not any(case for case, _ in items):  # they are of the dataset as a whole
        return [items[0][1], *(f"  {what}" for _, what in items[1:])]
    return [f"{len(items):,} cases", *(f"  {line}" for line in examples(items))]


def _set_aside(quarantine: Iterable[Quarantined]) -> list[str]:
    return _told_of("set aside", ((bad.name, bad.source, bad.reason) for bad in quarantine))


def _masks_left_out(entries: Iterable[Entry]) -> list[str]:
    """Return lines about the cases whose targets are used without the mask."""
    from oncofed.data.case_facts import mask_faults
    from oncofed.data.decisions import name_of

    found = ((name_of(one), one.source, "; ".join(mask_faults(one, bool(one.tiles)))) for one in entries)
    return _told_of("mask left out", (one for one in found if one[2]))


def _left_unknown(entries: Iterable[Entry]) -> list[str]:
    """Return lines about the cells that cannot be used, of cases that are used without."""
    from oncofed.data.decisions import name_of

    found = ((name_of(one), one.source, why) for one in entries for why in one.unread.values())
    return _told_of("left unknown", found)


def _told_of(what: str, cases: Iterable[tuple[str, str | None, str]]) -> list[str]:
    """Return lines about cases, each with its file and the reason."""
    from oncofed.data.grouping import finding_lines

    found = ((f"{name} ({source})" if source else name, reason) for name, source, reason in cases)
    return [
        f"  {escape(line.strip())}" if line.startswith("  ") else f"[yellow]{what}[/] {escape(line)}"
        for line in finding_lines(found)
    ]


def _print_told(console: Console, colour: str, label: str, lines: Sequence[str]) -> None:
    console.print(f"[{colour}]{label}[/] {escape(lines[0])}")
    for line in lines[1:]:
        console.print(line, markup=False)


def _print_answer(console: Console, answer: Answer | None, dataset: str, job: str) -> None:
    if answer:
        _, *others = answer.actions
        more = f"   (or {', '.join(others)})" if others else ""
        console.print(f"  to go on: {answer.command(dataset, job, typed_workspace())}{more}", markup=False)
