"""Writes the model card of a run."""

from __future__ import annotations

from pathlib import Path

from oncofed.artifacts.provenance import PROVENANCE_FILE, read_provenance
from oncofed.job.spec import JobSpec
from oncofed.models.bundle import BUNDLE_NAME
from oncofed.report.card import make_card, write_card
from oncofed.report.evaluation import EVALUATION_FILE, read_evaluation
from oncofed.report.result import Result


def write_cards(spec: JobSpec, result: Result, folder: Path) -> None:
    """Write a run's model card, also into its bundle's ``docs``.

    Args:
        spec: the job.
        result: of the run.
        folder: of the run; gets ``model/card.json`` and ``model/card.md``.
    """
    model, provenance = folder / "model", folder / PROVENANCE_FILE
    card = make_card(
        result,
        read_provenance(provenance) if provenance.is_file() else {},
        plan=spec.plan(),
        federation=spec.federation(),
        named={"licence": spec.licence, "contact": spec.contact},
        evaluation=read_evaluation(model / EVALUATION_FILE) if (model / EVALUATION_FILE).is_file() else None,
    )
    write_card(card, model)
    if (model / BUNDLE_NAME / "docs").is_dir():
        write_card(card, model / BUNDLE_NAME / "docs")
