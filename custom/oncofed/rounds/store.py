"""Files of a run at the server."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from oncofed.artifacts.provenance import PROVENANCE_FILE, write_provenance
from oncofed.artifacts.training_profile import PROFILE_FILE, TrainingProfile, write_training_profile
from oncofed.models.serialized import write_tensors
from oncofed.models.weights import Weights
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER, NotKept
from oncofed.rounds.intake import Record
from oncofed.rounds.run_state import RunState, read_run_state, write_run_state
from oncofed.tasks.calibration import CALIBRATION_FILE, Calibration


class RunStore:
    """Writes a run's files.

    Args:
        folder: of the run's state.
        keys: folder with the server's key and certificate, which sign the model's provenance.
        record: writes an event to the run's record.
    """

    def __init__(self, folder: Path, keys: Path, record: Record) -> None:
        self._folder, self._keys, self._record = folder, keys, record
        self._models = folder / MODELS_FOLDER
        self._models.mkdir(parents=True, exist_ok=True)
        self._saving: threading.Thread | None = None

    def read_state(self) -> RunState | None:
        """Return the state of an earlier process, if any."""
        return read_run_state(self._folder)

    def save_state(self, state: RunState) -> None:
        """Write a round's state while sites train on."""
        self.finish_saving()
        kept = dataclasses.replace(state, last={}, last_from=None)
        self._saving = threading.Thread(target=self._write_state, args=(kept,), name="keep round")
        self._saving.start()

    def _write_state(self, state: RunState) -> None:
        try:
            write_run_state(self._folder, state)
        except OSError as error:
            # The run goes on, but could not be resumed from this round.
            self._record(NotKept(round=state.round, reason=error.strerror or str(error)))

    def finish_saving(self) -> None:
        """Wait until the state is written.

        The next round changes its tensors.
        """
        if self._saving:
            self._saving.join()
            self._saving = None

    def write_best(self, weights: Weights) -> bool:
        """Write the best model, and return whether that was possible."""
        try:
            write_tensors(self._models / BEST_MODEL, weights)
        except OSError:
            return False
        return True

    def read_best(self) -> Weights:
        """Return the best model."""
        return load_file(self._models / BEST_MODEL)

    def write_calibration(self, calibration: Calibration) -> None:
        """Write the calibration next to the model.

        On a full disk only that file is missing.
        """
        try:
            calibration.write(self._models)
        except OSError as error:
            self._record(NotKept(round=0, reason=error.strerror or str(error)))

    def write_provenance(self, model: Weights, facts: Mapping[str, Any]) -> None:
        """Write the model's provenance."""
        write_provenance(self._models / PROVENANCE_FILE, model, facts, self._keys)

    def write_training_profile(self, profile: TrainingProfile) -> None:
        """Write the profile of the training images."""
        write_training_profile(self._models, profile)

    def artifacts(self) -> dict[str, str]:
        """Return contents by name of the model's small files."""
        files = [self._models / name for name in (PROFILE_FILE, CALIBRATION_FILE)]
        return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}
