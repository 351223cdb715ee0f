"""Runs the network over cases, reading ahead."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from oncofed.data import case_facts
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.prepared import PreparedCases, passing, prepare_one
from oncofed.errors import TrainingError
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.dicom.gantry_tilt import mask_unacquired
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.sources import SetAside, Source
from oncofed.prediction.trust.checks import TrustChecks
from oncofed.tasks.inferred import ClassScores, Inferred
from oncofed.tasks.slide_task import SlideTask
from oncofed.tasks.whole_slide.store import StripStore


@dataclass(frozen=True)
class Inference:
    """Predicts cases with one model.

    Attributes:
        model: model that predicts.
        device: to compute on.
        checks: trust checks of each prediction.
        batch: images per forward pass for whole-image tasks; None: as in scoring.
        scratch: folder of slides' finished strips, in which a broken prediction goes on; None: none are kept.
        settings: in words, on which these strips depend besides the model and the slide.
        within: called with (case, part of it done, parts in all) where a case takes long.
    """

    model: TrainedModel
    device: torch.device
    checks: TrustChecks
    batch: int | None = None
    scratch: Path | None = None
    settings: str = ""
    within: Callable[[str, int, int], None] | None = None

    def run(self, sources: Sequence[Source]) -> Iterator[CasePrediction | SetAside]:
        """Yield each case's prediction, or why there is none."""
        if not sources:
            return
        task, network = self.model.task, self.model.network(self.device)
        size = self.batch or task.cases_at_once
        with contextlib.ExitStack() as resources:
            read = _reader(sources, task.inference_preparation(), self.device, resources)
            for start in range(0, len(sources), size):
                batch = sources[start : start + size]
                prepared = list(zip(batch, read(batch, sources[start : start + 2 * size]), strict=True))
                good = [(source, case) for source, case in prepared if not isinstance(case, str)]
                yield from (_set_aside(source, case) for source, case in prepared if isinstance(case, str))
                if good:
                    yield from self._infer(network, good)

    def _infer(
        self, network: nn.Module, cases: Sequence[tuple[Source, Prepared]]
    ) -> Iterator[CasePrediction | SetAside]:
        task = self.model.task
        if len(cases) > 1 and any("slide" in prepared for _, prepared in cases):
            for case in cases:
                yield from self._infer(network, [case])
            return
        try:
            if isinstance(task, SlideTask) and "slide" in cases[0][1]:
                found: list[Inferred] = [self._on_slide(task, network, source, prepared) for source, prepared in cases]
            else:
                found = task.infer_all(network, [prepared for _, prepared in cases], self.device, entropy=True)
        except TrainingError as error:  # one case of the batch ran out of memory: find out which
            if len(cases) == 1:
                yield _set_aside(cases[0][0], str(error))
                return
            for case in cases:
                yield from self._infer(network, [case])
            return
        for (source, prepared), result in zip(cases, found, strict=True):
            masked = mask_unacquired(result, source)
            probabilities = masked.probabilities(task.temperature) if isinstance(masked, ClassScores) else None
            yield CasePrediction(
                source=source,
                found=masked,
                probabilities=probabilities,
                trust=self.checks.check_prediction(source, prepared, masked, probabilities),
                temperature=None if probabilities is None else self.model.temperature,
                network=network,
            )

    def _on_slide(self, task: SlideTask, network: nn.Module, source: Source, prepared: Prepared) -> Inferred:
        """Return the answer for a slide, of which the strips of an earlier call are not made again.

        Raises:
            TrainingError: a part of it cannot be read.
        """
        key = f"{self.model.digest} {source.entry.checksum} {self.settings}"
        place = self.scratch / hashlib.sha256(key.encode()).hexdigest()[:32] if self.scratch else None
        within = self.within
        store = StripStore(place, (lambda *counts: within(source.name, *counts)) if within else None)
        try:
            return task.infer_slide(network, prepared, self.device, store)
        except Exception as error:  # noqa: BLE001 - decoders raise many types; the other slides go on
            raise TrainingError(case_facts.reason_of(error)) from None


def _set_aside(source: Source, reason: str) -> SetAside:
    return SetAside(source.name, reason, source.entry.source or "")


def _reader(
    sources: Sequence[Source], preparation: Preparation, device: torch.device, resources: contextlib.ExitStack
) -> Callable[[Sequence[Source], Sequence[Source]], list[Prepared | str]]:
    """Return a function that prepares cases or reports problems.

    Its second argument names the cases to read ahead.
    """
    ahead: PreparedCases | None = None
    if not preparation.costly:  # a costly one would prepare all cases before the first is used
        cases = [source.case for source in sources]
        ahead = PreparedCases(cases, preparation, device, plan=passing(cases))
        resources.callback(ahead.close)

    def prepare(source: Source) -> Prepared | str:
        try:
            return ahead.of(source.case) if ahead else prepare_one(source.case, preparation)
        except Exception as error:  # noqa: BLE001 - one unreadable case must not stop the others
            return case_facts.reason_of(error).removeprefix(f"{source.case.name}: ")

    def read(batch: Sequence[Source], upcoming: Sequence[Source]) -> list[Prepared | str]:
        if ahead:
            ahead.ahead_of([source.case for source in upcoming])
        return [prepare(source) for source in batch]

    return read
