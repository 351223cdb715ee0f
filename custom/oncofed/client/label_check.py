"""A site's labels beside the federated model's answers, for the site only."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

from oncofed.client.local_training import ProgressReporter, Stop
from oncofed.client.progress import ThrottledProgress
from oncofed.private_files import write_private
from oncofed.tasks.label_doubts import label_doubts
from oncofed.training import Trainer

CHECKING_LABELS = "checking labels"


def check_labels(
    trainer: Trainer, path: Path, progress: ThrottledProgress, reporter: ProgressReporter, stop: Stop
) -> None:
    """Write a table of all cases, those first whose labels somebody should look at.

    Nothing of it leaves the site. An earlier process's table stays.

    Args:
        trainer: of the job, with the model's weights.
        path: of the CSV file.
        progress: of the cases.
        reporter: receives a line that says how many there are.
        stop: polled; true ends it early, and nothing is written.

    Raises:
        OSError: it cannot be written.
    """
    if path.is_file():
        return
    cases = trainer.cases
    splits = {"training": cases.train, "validation": cases.validation, "test": cases.test}
    split_of = {case.name: split for split, of_split in splits.items() for case in of_split}
    every = [case for of_split in splits.values() for case in of_split]
    doubts = label_doubts(
        trainer.task,
        trainer.network,
        every,
        trainer.device,
        should_stop=stop,
        progress=progress.counter(CHECKING_LABELS),
    )
    if stop():
        return
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["case", "split", "suspected", "score", "model_says", "model_certainty", "doubt"])
    for one in doubts:
        certainty = "" if one.certainty is None else f"{one.certainty:.4f}"
        row = [one.case, split_of[one.case], one.suspected, f"{one.score:.4f}", one.answer, certainty]
        table.writerow([*row, f"{one.doubt:.4f}"])
    write_private(path, text.getvalue().encode())
    suspected = sum(one.suspected for one in doubts)
    reporter.note(f"{suspected} of {len(doubts)} labels disagree with the model's answers: {path}", logging.INFO)
