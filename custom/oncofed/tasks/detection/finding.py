"""Boxes of a whole image, from windows that slide over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
class Window:
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
            for found in self.of_windows(network, windows, torch.stack(parts).to(device)):
                boxes.append(found[0])
                logits.append(found[1])
        return self.chosen(boxes, logits, shape)

    @torch.no_grad()
    def of_windows(
        self, network: nn.Module, windows: Sequence[Window], inputs: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield boxes in the image, and their logits, of each window, on the CPU.

        Args:
            network: in evaluation mode.
            windows: places of the inputs.
            inputs: (window, channel, x, y[, z]), on the network's device.
        """
        with torch.autocast("cuda", inference_type(inputs.device), enabled=inputs.device.type == "cuda"):
            output = network(inputs)
        for window, values in zip(windows, output.float(), strict=True):
            boxes, logits = self._of_window(window, values)
            yield boxes.cpu(), logits.cpu()

    def chosen(self, boxes: list[Tensor], logits: list[Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes of windows without those that overlap a likelier one; see ``__call__``.

        Args:
            boxes: of each window, (box, 2 * axes), in voxels of the image.
            logits: of each window, (box, class).
            shape: of the image.
        """
        found, scores, classes = self._selector.select_boxes_per_image(boxes, logits, list(shape))
        order = scores.argsort(descending=True, stable=True)
        return found[order], scores[order], classes[order]

    def _of_window(self, window: Window, values: Tensor) -> tuple[Tensor, Tensor]:
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

    def _windows(self, shape: tuple[int, ...]) -> Iterator[Window]:
        along = [along_axis(length, side, self._overlap) for length, side in zip(shape, self._patch, strict=True)]
        for places in itertools.product(*along):
            yield window_at(*places)


def along_axis(length: int, side: int, overlap: float) -> list[tuple[int, float, float]]:
    """Return windows' starts along an axis, and from where to where each answers for objects.

    Args:
        length: of the image, at least ``side``.
        side: of a window.
        overlap: share by which windows overlap.
    """
    starts = window_starts(length, side, overlap)
    middles = [(before + side + after) / 2 for before, after in itertools.pairwise(starts)]
    return list(zip(starts, [-torch.inf, *middles], [*middles, torch.inf], strict=True))


def window_at(*places: tuple[int, float, float]) -> Window:
    """Return the window at a place of each axis; see ``along_axis``."""
    corner, low, high = zip(*places, strict=True)
    return Window(corner, low, high)


def _inside(corner: tuple[int, ...], patch: tuple[int, ...]) -> tuple[slice, ...]:
    return (slice(None), *(slice(at, at + side) for at, side in zip(corner, patch, strict=True)))


def _by(windows: Iterator[Window], number: int) -> Iterator[list[Window]]:
    while part := list(itertools.islice(windows, number)):
        yield part
