"""``exposure.html``, and a run's report: what attacks on a job gave away."""

from __future__ import annotations

from pathlib import Path

from oncofed.atomic import write_whole
from oncofed.errors import DataError
from oncofed.exposure.results import Exposure
from oncofed.private_files import write_private
from oncofed.report.pages import render
from oncofed.report.result import read_result

# Between them, a run's report shows what attacks read from the job's updates.
_BEGIN, _END = "<!-- exposure -->", "<!-- end of exposure -->"
PAGE, FIGURES = "exposure.html", "exposure.json"


def write_exposure(found: Exposure, folder: Path) -> Path:
    """Write figures and page, readable by their owner alone, and return the page.

    Args:
        found: what the attacks found.
        folder: of both files; it is created.
    """
    write_private(folder / FIGURES, found.model_dump_json(indent=2).encode())
    write_private(folder / PAGE, render(PAGE, found=found).encode())
    return folder / PAGE


def require_report(run: Path, job: str) -> None:
    """Refuse a folder whose report cannot show a job's exposure.

    Args:
        run: its folder.
        job: its name.

    Raises:
        DataError: it is no run of the job, or has no report with a place for it.
    """
    try:
        made_of = read_result(run).job
        text = (run / "report.html").read_text(encoding="utf-8")
    except OSError:
        raise DataError(f"{run}: found no result.json with its report.html. Name the folder of a run") from None
    if made_of != job:
        raise DataError(f"{run} is a run of {made_of}, expected one of {job}. Name a run of the job, or leave --into")
    if _BEGIN not in text or _END not in text:
        raise DataError(f"{run / 'report.html'} has no place for it: an earlier release wrote it. Use --out")


def write_into_report(found: Exposure, run: Path, folder: str) -> Path:
    """Show what attacks found in a run's report, in place of earlier attacks, and return the report.

    Others may read it: figures of fewer than five images stay in the page, which its owner alone can read.

    Args:
        found: what the attacks found.
        run: its folder; see ``require_report``.
        folder: of the page, within the run's.
    """
    path = run / "report.html"
    before, rest = path.read_text(encoding="utf-8").split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    part = render("exposure_part.html", found=found.of_enough_images(), page=f"{folder}/{PAGE}")
    write_whole(path, f"{before}{_BEGIN}\n{part}\n{_END}{after}")
    return path
