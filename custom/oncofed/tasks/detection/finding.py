"""Boxes of a whole image, from windows that slide over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from monai.apps.detection.utils.box_selector import BoxSelector
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.spec import DataSpec
from oncofed.devices import inference_type
from oncofed.tasks.detection.loss import Columns
from oncofed.tasks.detection.spec import DetectionSpec
from oncofed.tasks.windows import window_starts

_WINDOWS_AT_ONCE = 4
# Boxes of a window that are compared with others.
_MOST_OF_WINDOW = 300


@dataclass(frozen=True)
class _Window:
    """A window, and the places whose objects it answers for.

    Of two windows that overlap each answers for its side of the overlap's middle: an object that a window cuts off is
    seen whole by its neighbour.
    """

    corner: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Finder:
    """Finds the boxes of an image.

    Args:
        data: of the job; windows have the size of patches.
        spec: of the task.
        columns: of the network's output.
    """

    def __init__(self, data: DataSpec, spec: DetectionSpec, columns: Columns) -> None:
        self._patch, self._overlap, self._columns = data.patch, spec.overlap, columns
        self._least = spec.least_score
        self._selector = BoxSelector(
            score_thresh=spec.least_score,
            topk_candidates_per_level=_MOST_OF_WINDOW,
            nms_thresh=spec.merged_overlap,
            detections_per_img=spec.most_boxes,
        )

    @torch.no_grad()
    def __call__(self, network: nn.Module, image: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (box, 2 * axes), scores (box,) and classes (box,), on the CPU.

        Boxes are in voxels of the image, classes count from 0, scores fall.

        Args:
            network: on ``device``, in evaluation mode.
            image: (channel, x, y[, z]).
            device: where the network is.
        """
        shape = tuple(image.shape[1:])
        missing = [max(0, side - length) for side, length in zip(self._patch, shape, strict=True)]
        padded = functional.pad(image, [n for side in missing[::-1] for n in (0, side)])
        boxes, logits = [], []
        for windows in _by(self._windows(tuple(padded.shape[1:])), _WINDOWS_AT_ONCE):
            parts = [padded[_inside(window.corner, self._patch)] for window in windows]
            with torch.autocast("cuda", inference_type(device), enabled=device.type == "cuda"):
                output = network(torch.stack(parts).to(device))
            for window, values in zip(windows, output.float(), strict=True):
                found = self._of_window(window, values)
                boxes.append(found[0].cpu())
                logits.append(found[1].cpu())
        chosen, scores, classes = self._selector.select_boxes_per_image(boxes, logits, list(shape))
        order = scores.argsort(descending=True, stable=True)
        return chosen[order], scores[order], classes[order]

    def _of_window(self, window: _Window, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes in the image, and logits, of what a window answers for."""
        logits, offsets, anchors, _ = self._columns.split(values)
        likely = logits.sigmoid().amax(dim=1) > self._least
        logits, offsets, anchors = logits[likely], offsets[likely], anchors[likely]
        boxes = self._columns.coder.decode_single(offsets.nan_to_num(), anchors)
        axes = self._columns.axes
        boxes = boxes + boxes.new_tensor(window.corner * 2)
        centres = (boxes[:, :axes] + boxes[:, axes:]) / 2
        own = ((centres >= boxes.new_tensor(window.low)) & (centres < boxes.new_tensor(window.high))).all(dim=1)
        return boxes[own], logits[own]

    def _windows(self, shape: tuple[int, ...]) -> Iterator[_Window]:
        along = []
        for length, side in zip(shape, self._patch, strict=True):
            starts = window_starts(length, side, self._overlap)
            middles = [(before + side + after) / 2 for before, after in itertools.pairwise(starts)]
            along.append(list(zip(starts, [-torch.inf, *middles], [*middles, torch.inf], strict=True)))
        for places in itertools.product(*along):
            corner, low, high = zip(*places, strict=True)
            yield _Window(corner, low, high)


def _inside(corner: tuple[int, ...], patch: tuple[int, ...]) -> tuple[slice, ...]:
    return (slice(None), *(slice(at, at + side) for at, side in zip(corner, patch, strict=True)))


def _by(windows: Iterator[_Window], number: int) -> Iterator[list[_Window]]:
    while part := list(itertools.islice(windows, number)):
        yield part
