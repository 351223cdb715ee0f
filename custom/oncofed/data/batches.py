"""An endless, resumable stream of batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from oncofed.data.augment import Batch
from oncofed.data.inputs import BatchSource
from oncofed.data.prepared import PreparedCases
from oncofed.devices import free_memory, is_out_of_memory
from oncofed.errors import TrainingError

_LOG = logging.getLogger(__name__)


class BatchBuilder:
    """Draws samples of cases and puts them together to a batch.

    If GPU memory runs out, the same batch is drawn again, in the end on the CPU.

    Args:
        prepared: the cases.
        input_: turns them into batches.
        device: where batches are wanted.

    Attributes:
        prepared: the cases.
    """

    def __init__(self, prepared: PreparedCases, input_: BatchSource, device: torch.device) -> None:
        self.prepared = prepared
        self._input = input_
        self._device = device
        self._changes_on = device

    def build(self, indices: Sequence[int], generator: Generator, upcoming: Sequence[int] = ()) -> Batch:
        """Return a sample of each case as one batch.

        Args:
            indices: of the cases.
            generator: of all that is random.
            upcoming: cases that are wanted next.

        Raises:
            TrainingError: the batch does not fit even when augmented on the CPU.
        """
        before = generator.get_state()
        for place in (self._changes_on, self._changes_on, torch.device("cpu")):
            batch = self._tried(indices, generator, upcoming, place)
            if batch is not None:
                if place != self._changes_on:
                    _LOG.warning("the GPU's memory is full: batches are changed on the CPU from now on, more slowly")
                    self._changes_on = place
                return batch
            generator.set_state(before)
            free_memory()
        raise TrainingError(
            "a batch alone does not fit into what is free of the GPU's memory. Make training.batch_size or data.patch "
            "smaller; nvidia-smi shows what else uses it"
        )

    def _tried(
        self, indices: Sequence[int], generator: Generator, upcoming: Sequence[int], place: torch.device
    ) -> Batch | None:
        """Return the batch; None where memory was full.

        The error's references are dropped when this returns.
        """
        try:
            return self._draw(indices, generator, upcoming, place)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _draw(
        self, indices: Sequence[int], generator: Generator, upcoming: Sequence[int], place: torch.device
    ) -> Batch:
        """Draw a batch and change it at ``place``."""
        self.prepared.ahead([*indices, *upcoming])
        self._input.device = place
        parts = [self._input.draw(self.prepared[index], generator) for index in indices]
        if self._device.type == "cpu":
            return self._input.change(self._input.together(parts), generator)
        if place.type == "cpu":
            on_host = [{name: values.cpu() for name, values in drawn.items()} for drawn in parts]
            return self._to_gpu(self._input.change(self._input.together(on_host), generator))
        if len({values.is_cuda for drawn in parts for values in drawn.values()}) > 1:
            # The GPU had room for only some of the cases.
            parts = [self._to_gpu(drawn) for drawn in parts]
        return self._input.change(self._to_gpu(self._input.together(parts)), generator)

    def _to_gpu(self, batch: Batch) -> Batch:
        return {name: _pinned(values).to(self._device, non_blocking=True) for name, values in batch.items()}


class BatchStream(Iterator[Batch]):
    """Draws batches from shuffled epochs.

    Epochs follow each other without a gap; a batch may span two.

    On a GPU the next batch is copied and augmented on a separate stream while the current one is trained on.

    Args:
        prepared: the cases.
        input_: turns them into batches.
        batch_size: of a step.
        seed: of the order and the augmentation.
        device: where batches are wanted.
    """

    def __init__(
        self, prepared: PreparedCases, input_: BatchSource, batch_size: int, seed: int, device: torch.device
    ) -> None:
        self._builder = BatchBuilder(prepared, input_, device)
        self._batch_size = batch_size
        self._device = device
        self._generator = Generator().manual_seed(seed)
        self._queue = torch.empty(0, dtype=torch.long)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._stream:
            # Prepared cases must be on the device before batches are drawn from them.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._next: tuple[Batch, torch.cuda.Event] | None = None
        self._before = self._state()

    def __next__(self) -> Batch:
        if self._stream is None:
            self._before = self._state()
            return self._drawn()
        batch, ready = self._next or self._ahead(self._stream)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(ready)
        for values in batch.values():
            # The allocator must not reuse this memory while the training stream still reads it.
            values.record_stream(current)
        self._next = self._ahead(self._stream)
        return batch

    def state(self) -> dict[str, Tensor]:
        """Return the stream's state after the last batch."""
        return self._before if self._next is not None else self._state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self._go_back(state)
        self._next = None

    def begin_round(self) -> None:
        """Do nothing: all batches come from the seed."""

    def _state(self) -> dict[str, Tensor]:
        return {"generator": self._generator.get_state(), "queue": self._queue.clone()}

    def _ahead(self, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
        self._before = self._state()
        with torch.cuda.stream(stream):
            batch = self._drawn()
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(stream)
        return batch, ready

    def _go_back(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self._queue = state["queue"].clone()

    def _drawn(self) -> Batch:
        before = self._state()
        try:
            indices = self._indices()
            # The next batch's cases are prepared while this batch is trained on.
            return self._builder.build(indices, self._generator, self._queue[: self._batch_size].tolist())
        except BaseException:
            # After a temporary read error, the next call must return this same batch.
            self._go_back(before)
            raise

    def _indices(self) -> list[int]:
        while len(self._queue) < self._batch_size:
            order = torch.randperm(len(self._builder.prepared), generator=self._generator)
            self._queue = torch.cat([self._queue, order])
        now, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return [int(index) for index in now]


def _pinned(values: Tensor) -> Tensor:
    return values if values.is_cuda else values.pin_memory()
