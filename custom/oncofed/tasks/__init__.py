"""What is learned. A task ties loss, metric, inference and pictures together, and knows nothing of federation."""

from oncofed.tasks.segmentation import Segmentation, SegmentationSpec

__all__ = ["Segmentation", "SegmentationSpec"]
