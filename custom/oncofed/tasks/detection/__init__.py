"""Detection of lesions and other objects as boxes, in volumes and flat images."""

from oncofed.tasks.detection.outcome import DetectionOutcome, Matched
from oncofed.tasks.detection.spec import DetectionSpec
from oncofed.tasks.detection.task import Detection

__all__ = ["Detection", "DetectionOutcome", "DetectionSpec", "Matched"]
