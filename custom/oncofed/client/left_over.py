"""What 16-bit words cut and round off an update, for the next one."""

from __future__ import annotations

from pathlib import Path

from oncofed.models.weights import Weights
from oncofed.training.checkpoint import previous_of, read_checkpoint, write_checkpoint

_FILE = "left_over.safetensors"


class LeftOver:
    """Keeps what the words of a round's update lack, until the next update takes it (error feedback).

    A round takes what an earlier one left, also where it is trained or masked again: never what it left itself.

    Args:
        folder: of the job's state at this site.

    Raises:
        StateError: a file of an earlier process is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._kept: list[tuple[int, Weights]] = []
        for path in (previous_of(self._path), self._path):
            if path.is_file():
                values, facts = read_checkpoint(path)
                self._kept.append((int(facts["round"]), values))

    def before(self, number: int) -> Weights:
        """Return what the last round before this one left, by name; empty if none did."""
        return next((values for of_round, values in reversed(self._kept) if of_round < number), {})

    def keep(self, number: int, values: Weights) -> None:
        """Keep what a round left, in place of what it left before.

        Raises:
            OSError: it cannot be written.
        """
        if self._kept and self._kept[-1][0] == number:
            return  # an answer is given again
        write_checkpoint(self._path, values, {"round": number})
        self._kept = [*self._kept[-1:], (number, values)]
