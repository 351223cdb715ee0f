"""A process that extracts features, slide after slide."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from oncofed.data.case_facts import reason_of
from oncofed.data.features import FeatureBag, write_features
from oncofed.data.features.kept import made_of
from oncofed.data.features.spool import SPOOL_FOLDER, Spool
from oncofed.data.slides import Pixels, TileReader
from oncofed.data.tiles import SlideError, SlideTiles, stream_tiles
from oncofed.devices import training_device
from oncofed.errors import OncofedError
from oncofed.gpus import VISIBLE_VARIABLE
from oncofed.processes import end_with_starter
from oncofed.tasks.encoder import Encoder, EncoderSpec
from oncofed.tasks.extraction.messages import Done, Failed, Message, Progress, Ready, SetAside, SlideJob, Wanted


@dataclass(frozen=True)
class Place:
    """Where a process computes.

    Attributes:
        device: "cuda" or "cpu".
        gpu: the one that it sees; None: as its parent.
        threads: that read, and that compute on a CPU.
    """

    device: str
    gpu: str | None
    threads: int


def run(connection: Connection, encoder: EncoderSpec, out: Path, place: Place) -> None:
    """Extract slides until the parent has no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_starter()
    warnings.filterwarnings("ignore")
    if place.gpu is not None:
        os.environ[VISIBLE_VARIABLE] = place.gpu  # CUDA reads it when it is first used, which is later
    torch.set_num_threads(place.threads)

    def ask() -> SlideJob | None:
        connection.send(Wanted())
        job: SlideJob | None = connection.recv()
        return job

    with contextlib.suppress(BrokenPipeError, EOFError):  # the parent is gone
        try:
            built = Encoder(encoder, training_device(place.device))
            connection.send(Ready(built.digest, built.key, built.size))
            Extraction(built, encoder.network, out, ask, connection.send, place.threads).run()
        except (OncofedError, MemoryError) as error:
            connection.send(Failed(str(error) or "there is too little memory"))
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            connection.send(Failed(f"{error.filename or out}: {error.strerror or error}"))


@dataclass
class _Open:
    """A slide under way.

    ``left`` counts the tiles that are yet to be handed to the encoder, ``number`` is the slide's in the stream.
    """

    job: SlideJob
    spool: Spool
    left: int = 0
    number: int = 0


class Extraction:
    """Extracts the slides that it asks for.

    A slide's tiles are read while those of the one before are computed. Batches begin anew with each slide: its
    features do not depend on the slides around it, nor on where an earlier process was killed.

    Args:
        encoder: makes the features.
        name: of the encoder, for the files.
        out: folder for one file a slide.
        ask: returns the next slide; None: there is none for now.
        tell: is called with what was done.
        threads: that read.
    """

    def __init__(
        self,
        encoder: Encoder,
        name: str,
        out: Path,
        ask: Callable[[], SlideJob | None],
        tell: Callable[[Message], None],
        threads: int,
    ) -> None:
        self._encoder, self._name, self._out = encoder, name, out
        self._ask, self._tell, self._threads = ask, tell, threads
        self._open: deque[_Open] = deque()

    def run(self) -> None:
        """Work until there is nothing in hand and no next slide.

        Raises:
            TrainingError: the encoder cannot be used.
            OSError: a file cannot be written.
        """
        try:
            while self._stretch() or self._open:
                pass
        finally:
            for each in self._open:
                each.spool.close()

    def _stretch(self) -> bool:
        """Work until all slides in hand are done, or one cannot be read; return whether there was any."""
        streamed: list[_Open] = []
        try:
            with contextlib.closing(stream_tiles(self._coming(streamed), self._threads)) as tiles:
                for features in self._encoder.stream(self._batches(tiles, streamed)):
                    self._keep(features.float().numpy())
        except SlideError as error:
            bad = streamed[error.number]
            self._open.remove(bad)
            bad.spool.close()
            self._tell(SetAside(bad.job.number, str(error)))
        return bool(streamed)

    def _coming(self, streamed: list[_Open]) -> Iterator[SlideTiles]:
        """Yield what is left of each slide: first of those that are open, then of new ones."""
        for each in list(self._open):
            yield self._rest(each, streamed)
        while not any(each.job.alone for each in self._open):
            job = self._ask()
            if job is None:
                return
            each = _Open(job, self._spool(job))
            self._tell(Progress(job.number, each.spool.done))
            if each.spool.complete:  # killed before the file was written
                self._finish(each)
                continue
            self._open.append(each)
            yield self._rest(each, streamed)

    def _rest(self, each: _Open, streamed: list[_Open]) -> SlideTiles:
        tiles = each.job.tiles
        rest = replace(tiles, x=tiles.x[each.spool.done :], y=tiles.y[each.spool.done :])
        each.left, each.number = len(rest), len(streamed)
        streamed.append(each)
        return rest

    def _batches(self, tiles: Iterator[tuple[int, int, list[Pixels]]], streamed: list[_Open]) -> Iterator[list[Pixels]]:
        """Yield tiles in batches, none of which spans slides."""
        batch: list[Pixels] = []
        for number, _, run in tiles:
            each = streamed[number]
            for tile in run:
                batch.append(tile)
                each.left -= 1
                if len(batch) >= self._encoder.at_once or not each.left:
                    yield batch
                    batch = []

    def _keep(self, vectors: np.ndarray) -> None:
        """Append the vectors of a batch, and finish a slide with its last."""
        each = self._open[0]
        if not np.isfinite(vectors).all():
            raise SlideError("its features are not finite numbers. Leave it out, or take other weights", each.number)
        each.spool.append(vectors)
        self._tell(Progress(each.job.number, each.spool.done))
        if each.spool.complete:
            self._open.popleft()
            self._finish(each)

    def _finish(self, each: _Open) -> None:
        """Write a slide's file."""
        tiles = each.job.tiles
        with each.spool:
            each.spool.mark()
            try:
                with TileReader(tiles.path, tiles.spec) as reader:
                    step = reader.step
            except Exception as error:  # noqa: BLE001 - readers raise any type of error
                self._tell(SetAside(each.job.number, reason_of(error)))
                return
            bag = FeatureBag(
                features=each.spool.vectors(),
                places=np.stack([tiles.x, tiles.y], axis=1),
                step=step,
                tile=tiles.spec.size,
                mpp=tiles.spec.mpp,
                encoder=self._name,
                digest=digest_of(self._encoder.digest),
                recipe=self._encoder.recipe,
            )
            write_features(self._out / file_of(each.job.name), bag)
        self._tell(Done(each.job.number))

    def _spool(self, job: SlideJob) -> Spool:
        encoder = self._encoder
        # What may change the last bits: vectors of one slide are all made alike.
        how = [encoder.at_once, encoder.device.type, torch.__version__]
        made = json.dumps([made_of(encoder.key, job.source, job.tiles), *how])
        key = hashlib.sha256(made.encode()).hexdigest()
        return Spool(self._out / SPOOL_FOLDER, job.name, key, len(job.tiles), encoder.size)


def digest_of(encoder: str) -> str | None:
    """Return the digest of an encoder's weights; None without weights.

    Args:
        encoder: ``Encoder.digest``, a name and a digest.
    """
    return encoder.partition(" ")[2] or None


def file_of(name: str) -> str:
    """Return the name of a slide's file."""
    return f"{name}.h5"
