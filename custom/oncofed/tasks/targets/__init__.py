"""Named targets of a case: classes, findings, grades, values and survival, learned by one network.

Each kind of target is one file: its settings, how a case's value becomes numbers, loss, answer and figures.
"""

from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.targets.base import TARGET_KINDS, TargetFigures, TargetHead, TargetSettings
from oncofed.tasks.targets.beside_mask import MaskTargets, MaskTargetsSpec
from oncofed.tasks.targets.details import TargetDetails, details_of, figure_titles
from oncofed.tasks.targets.images import ImageTargets, ImageTargetsSpec
from oncofed.tasks.targets.settings import TargetsSpec, target_answers
from oncofed.tasks.targets.slides import SlideTargets, SlideTargetsSpec
from oncofed.tasks.targets.table import TableTargets, TableTargetsSpec
from oncofed.tasks.targets.task import TargetsTask

__all__ = [
    "TARGET_KINDS",
    "ImageTargets",
    "ImageTargetsSpec",
    "MaskTargets",
    "MaskTargetsSpec",
    "SlideTargets",
    "SlideTargetsSpec",
    "TableTargets",
    "TableTargetsSpec",
    "TargetDetails",
    "TargetFigures",
    "TargetHead",
    "TargetScores",
    "TargetSettings",
    "TargetsSpec",
    "TargetsTask",
    "details_of",
    "figure_titles",
    "target_answers",
]
