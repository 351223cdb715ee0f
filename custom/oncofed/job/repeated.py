"""Runs of a series, of which those that completed before are not repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from oncofed.job.run import Run
from oncofed.report.result import Result, read_result


def completed(folder: Path) -> Path | None:
    """Return the folder of a completed run, which may be a repetition: ``FOLDER-2`` and so on; None: there is none."""
    folders = [folder, *sorted(folder.parent.glob(f"{folder.name}-*"))]
    done = (f for f in folders if (f / "result.json").is_file() and read_result(f).status == "completed")
    return next(done, None)


def run_once(run: Run) -> Result:
    """Return a run's result, of an earlier time where it completed then.

    Args:
        run: whose folder names it within its series.

    Raises:
        OncofedError: the run failed.
    """
    before = completed(run.folder)
    if before is not None:
        run.console.print(f"{before.name}: completed before")
        return read_result(before)
    folder = run.folder
    if (folder / "result.json").is_file():
        folder = next(f for n in range(2, 1000) if not (f := folder.with_name(f"{folder.name}-{n}")).exists())
    run.console.rule(folder.name)
    return replace(run, folder=folder).execute()
