"""What a person should know of a pull."""

from __future__ import annotations

from oncofed.hospital.pull import PullOutcome

_MOST_LINES = 20


def notes(outcome: PullOutcome) -> list[str]:
    """Return what a person should know, without a name of a patient."""
    plan, arrived = outcome.plan, outcome.arrived
    lines = [f"{count:,} objects were not kept: {why}" for why, count in arrived.left_out.items()]
    counted = [
        (
            outcome.missing,
            f"objects did not arrive, though the archive names them{f' ({outcome.why})' if outcome.why else ''}",
        ),
        (outcome.vanished, "objects have vanished from the archive since; their files stay here"),
        (outcome.elsewhere, "objects here are not of this cohort; their files stay"),
        (outcome.moved, "studies are another patient's now, as after a merge: they were fetched again"),
        (outcome.lost, "files were gone or changed here: they were fetched again"),
        (
            arrived.unasked + plan.unasked,
            "things came that nobody asked for, or that are of another patient than their study: they were not kept",
        ),
    ]
    lines += [f"{count:,} {what}" for count, what in counted if count]
    if plan.not_found:
        lines.append(f"the archive has nothing for {_rows(plan.not_found)} of the table")
    if plan.of_several:
        lines.append(
            f"{_rows(plan.of_several)} of the table: their accession number is of several patients, and none was "
            "taken. Add a column patient_id"
        )
    if outcome.groups:
        groups = "; ".join(" and ".join(group) for group in outcome.groups[:_MOST_LINES])
        lines.append(
            f"{len(outcome.groups)} persons (by name, birth date and sex) have images under several patient IDs, whose "
            f"digests in pulled.csv are {groups}: a split by patient may put one person on both sides"
        )
    return lines


def _rows(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:_MOST_LINES])) + (", …" if len(lines) > _MOST_LINES else "")
    return f"{len(lines)} rows (lines {shown})"
