"""Predicts watched inputs, each into its own folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from oncofed.data.dicom.headers import looks_like_dicom
from oncofed.errors import DataError
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.page import write_page
from oncofed.prediction.permissions import enforce_private, make_private
from oncofed.prediction.results_folder import CASES_FOLDER
from oncofed.prediction.run import Options, predict
from oncofed.prediction.sources import file_name, gather
from oncofed.prediction.watching.folder_scanner import WatchItem
from oncofed.prediction.watching.watcher import ItemResult

RESULTS_FOLDER = "results"


@dataclass(frozen=True)
class Predictor:
    """Predicts an input into ``out/results/NAME``.

    Predicting the same input again overwrites the same files.

    Attributes:
        model: model that predicts.
        out: parent folder of all results.
        datasets: folder of the registered datasets.
        device: device of the network.
        options: prediction options.
        workers: reader processes; None: one per core.
        page: write a page with pictures.
    """

    model: TrainedModel
    out: Path
    datasets: Path
    device: torch.device
    options: Options = field(default_factory=Options)
    workers: int | None = None
    page: bool = True

    def __call__(self, item: WatchItem) -> ItemResult:
        """Predict one input.

        Raises:
            DataError: nothing could be predicted; the message says why.
            OSError: the folder is not writable.
        """
        folder = Path(self.out, RESULTS_FOLDER, *map(file_name, item.name.split("/")))
        enforce_private(self.out / RESULTS_FOLDER)
        make_private(folder)
        sources = gather(item.paths, folder, self.model.job, self.datasets, (), self.workers)
        found = predict(self.model, sources, folder, self.device, self.options)
        aside = [f"{bad.name}: {bad.reason}" for bad in found.set_aside]
        aside += [f"no {output}: {why}" for record in found.now for output, why in record["missing"].items()]
        if not found.now:
            raise DataError("; ".join(aside) or "it holds no image")
        page = [write_page(found, sources, self.model, folder, self.workers)] if self.page else []
        written = [
            folder / CASES_FOLDER / record["name"] / file
            for record in found.now
            for files in record["files"].values()
            for file in files
        ]
        to_send = [path for path in written if path.is_file() and looks_like_dicom(path)]
        return ItemResult((*written, *page), tuple(to_send), tuple(aside))
