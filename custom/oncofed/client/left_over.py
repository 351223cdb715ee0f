"""What 16-bit words cut and round off an update, for the next one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from oncofed.models.weights import Weights
from oncofed.training.checkpoint import previous_of, read_checkpoint, write_checkpoint

_FILE = "left_over.safetensors"
_LOG = logging.getLogger(__name__)
# Round, how often it was trained anew, and attempt at its sum.
Turn = tuple[int, int, int]


class LeftOver:
    """Keeps what the words of a round's update lack, until the next update takes it (error feedback).

    A round takes what an earlier one left, also where it is trained or masked again: never what it left itself. What
    counts is the last attempt of a round in which this site's words were in the confirmed sum.

    A file that does not say its turn, of an older release, counts as none: the next update lacks what it held, as that
    of a site whose answer was lost does.

    Args:
        folder: of the job's state at this site.

    Raises:
        StateError: a file of an earlier process is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._kept: list[tuple[Turn, Weights]] = []
        for path in (previous_of(self._path), self._path):
            if path.is_file():
                values, facts = read_checkpoint(path)
                if turn := _turn(facts):
                    self._kept.append((turn, values))
                else:
                    _LOG.warning("%s is of another release, and is not used: the next update lacks what it held", path)

    def before(self, number: int) -> Weights:
        """Return what the last round before this one left, by name; empty if none did, or it left nothing."""
        return next((values for turn, values in reversed(self._kept) if turn[0] < number), {})

    def begin(self, turn: Turn) -> None:
        """Forget what an earlier attempt at the same round left: its sum was lost.

        Raises:
            OSError: its file cannot be put away.
        """
        if self._kept and self._kept[-1][0][0] == turn[0] and self._kept[-1][0] != turn:
            self._kept.pop()
            before = previous_of(self._path)
            if self._kept and before.is_file():  # not on file systems without hard links
                before.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)

    def keep(self, turn: Turn, values: Weights) -> None:
        """Keep what a sum left, in place of what another attempt at its round did; nothing, too, is kept.

        Raises:
            OSError: it cannot be written.
        """
        if self._kept and self._kept[-1][0] == turn:
            return  # an answer is given again
        self.begin(turn)
        write_checkpoint(self._path, values, {"turn": turn})
        self._kept = [*self._kept[-1:], (turn, values)]


def _turn(facts: dict[str, Any]) -> Turn | None:
    """Return of which turn a file is; None of one that another release wrote."""
    found = facts.get("turn")
    if not isinstance(found, list) or [type(number) for number in found] != [int, int, int]:
        return None
    number, repeat, attempt = found
    return number, repeat, attempt
