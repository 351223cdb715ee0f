"""Output of ``oncofed data profile`` and ``oncofed data look``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from oncofed.cli.common import escape, plain_console, show_table

if TYPE_CHECKING:
    from oncofed.data.look import Look
    from oncofed.data.profile import Profile

_MOST_SHOWN = 20


def show_profile(found: Profile, page: Path) -> None:
    """Print sizes, spacings and shares of classes."""
    from oncofed.data.grouping import counted

    console = plain_console()
    size = f"{counted(found.cases, 'case')} of {counted(found.patients, 'patient')}"
    console.print(f"{found.dataset}: {size}, {found.set_aside} set aside")
    table = Table()
    for heading in ("", "smallest", "median", "largest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for group, summaries in (("size", found.shapes), ("spacing mm", found.spacings_mm), ("share", found.class_share)):
        for name, s in summaries.items():
            table.add_row(f"{group} {name}", f"{s.minimum:.4g}", f"{s.median:.4g}", f"{s.maximum:.4g}")
    show_table(table, console)
    for name, cases in found.features.items():
        console.print(f"features of {escape(name)}: {cases:,} cases")
    console.print(f"Page: {page}", soft_wrap=True)


def show_look(found: Look, folder: Path, page: Path) -> None:
    """Print suspicious cases with reasons."""
    console = plain_console()
    console.print(
        f"{found.manifest.name or folder.name}: {len(found.manifest.entries)} cases, {len(found.suspicious)} suspicious"
        f"; label and image compared in {found.examined} of the {found.masked} with a mask"
    )
    for remark in found.remarks:
        console.print(f"[yellow]most cases[/] {escape(remark)}")
    for seen in found.suspicious[:_MOST_SHOWN]:
        console.print(f"[yellow]suspicious[/] {escape(seen.name)}: {escape(seen.reasons[0].what)}")
    if len(found.suspicious) > _MOST_SHOWN:
        console.print(f"… and {len(found.suspicious) - _MOST_SHOWN} more; --json lists them all")
    console.print(f"Page: {page}")


def look_values(found: Look, page: Path) -> dict[str, Any]:
    """Return the output of ``look --json``."""
    return {
        "dataset": found.manifest.name,
        "page": str(page),
        "cases": len(found.manifest.entries),
        "masked": found.masked,
        "examined": found.examined,
        "remarks": list(found.remarks),
        "suspicious": [
            {"case": s.name, "reasons": [{"kind": r.kind, "what": r.what} for r in s.reasons]} for s in found.suspicious
        ],
        "shown": [seen.name for seen in found.shown],
    }
