"""The interface of a task.

One object ties training input, loss, inference, scores and pictures together.
"""

from __future__ import annotations

from typing import Any, ClassVar

from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.plugins import Kind
from oncofed.tasks.inference_task import InferenceTask
from oncofed.tasks.patient_statistics import Outcome
from oncofed.tasks.scoring_task import ScoringTask
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.training_task import TrainingTask


class Task(TrainingTask, InferenceTask, ScoringTask[Outcome]):
    """A task: input, loss, inference, scores and pictures.

    A script, a notebook, a test and a federation use a task the same way: ``input`` makes batches, ``forward`` and
    ``loss`` make a training step (``TrainingTask``), ``infer`` answers for a case (``InferenceTask``), ``evaluate``
    scores cases (``ScoringTask``).

    Args:
        data: of the job.
        classes: label value -> name, as the job learns them.

    Attributes:
        Settings: of the job's section ``task``.
        is_installed: its code is a part of an installed package, not of a pack.
        label_kind: what a case is labelled with.
        network_kind: of the networks that fit.
        reads_slides: what it is trained on are whole slides.
        temperature: by which scores and pictures of a classification divide its logits; ``infer`` leaves them alone.
    """

    Settings: ClassVar[type[TaskSettings]]
    is_installed: ClassVar[bool] = True
    label_kind: LabelKind = "mask"
    network_kind: Kind = "dense"
    reads_slides: ClassVar[bool] = False
    temperature = 1.0

    def __init__(self, data: DataSpec, classes: dict[int, str]) -> None:
        self.data = data
        self.classes = classes

    @property
    def figure_names(self) -> list[str]:
        """Names of the figures by class; see ``Scores.by_class``."""
        return list(self.classes.values())

    @classmethod
    def build(cls, settings: Any, data: DataSpec, pack: str) -> Task[Any]:
        """Return the task of a job.

        Args:
            settings: the job's section ``task``.
            data: its section ``data``.
            pack: digest of the pack that the job brings; empty: none.
        """
        del pack
        return cls(settings, data)  # type: ignore[arg-type] # subclasses take (settings, data)
