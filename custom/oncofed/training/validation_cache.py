"""Validation cases, prepared once for all rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from oncofed.data.case import Case
from oncofed.data.prepared import PreparedCases, plan_cache
from oncofed.tasks import Task

_CPU = torch.device("cpu")


class ValidationCache:
    """Holds validation cases prepared from their first evaluation on.

    Args:
        task: that scores them.
        validation: the site's validation cases.
    """

    def __init__(self, task: Task[Any], validation: tuple[Case, ...]) -> None:
        self._task = task
        self._validation = frozenset(validation)
        self._prepared: PreparedCases | None = None

    def prepared(
        self, cases: tuple[Case, ...], promised: int, progress: Callable[[int, int], None] | None
    ) -> PreparedCases | None:
        """Return the held validation cases.

        None for others, and for those outside the first evaluation.

        Args:
            cases: to be scored.
            promised: bytes of memory that training cases will take.
            progress: called with (cases prepared, cases in all).
        """
        preparation = self._task.scoring_preparation()
        if not preparation or not cases or not self._validation.issuperset(cases):
            return None
        if self._prepared is None:
            plan = plan_cache(cases, preparation, _CPU, promised)
            self._prepared = PreparedCases(cases, preparation, _CPU, progress, plan)
        return self._prepared if all(case in self._prepared for case in cases) else None

    def close(self) -> None:
        """Stop reading ahead."""
        if self._prepared:
            self._prepared.close()
