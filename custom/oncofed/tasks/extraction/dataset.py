"""A dataset's features, extracted and listed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oncofed.data.case import case_of
from oncofed.data.case_facts import reason_of
from oncofed.data.features.kept import (
    Kept,
    KeptSlide,
    forget_others,
    made_of,
    read_kept,
    slide_source,
    write_kept,
)
from oncofed.data.features.spool import SPOOL_FOLDER, remove_spool
from oncofed.data.manifest import Manifest, read_manifest
from oncofed.data.tiles import read_tiles
from oncofed.errors import DataError
from oncofed.locking import sole_process
from oncofed.tasks.encoder import EncoderSpec
from oncofed.tasks.extraction.messages import Done, Progress, Ready, SetAside, SlideJob
from oncofed.tasks.extraction.pool import Pool, find_places
from oncofed.tasks.extraction.table import write_table
from oncofed.tasks.extraction.worker import digest_of, file_of

_LOCK_FILE = ".lock"


@dataclass(frozen=True)
class ExtractionRequest:
    """What is to be extracted.

    Attributes:
        folder: of a registered dataset.
        encoder: for all slides.
        out: folder of the files.
        device: see ``find_places``.
        workers: processes on a CPU.
    """

    folder: Path
    encoder: EncoderSpec
    out: Path
    device: str | None = None
    workers: int | None = None


@dataclass
class Extracted:
    """What was done.

    Attributes:
        kept: all that the folder holds now.
        slides: done by this call.
        tiles: done by this call.
        seconds: of this call, without starting.
        processes: that worked.
    """

    kept: Kept
    slides: int = 0
    tiles: int = 0
    seconds: float = 0.0
    processes: int = 0


def extract_dataset(request: ExtractionRequest, advance: Callable[[str, int, int], None] | None = None) -> Extracted:
    """Extract the features of a dataset's slides.

    A slide that is done is left alone, one that was begun goes on where it was. At any moment the process may be
    killed. Slides that cannot be used are set aside with their reason, also those that registering set aside; what is
    left of slides that the dataset no longer has is removed.

    Args:
        request: what, and where.
        advance: called with (activity, tiles done, tiles in all).

    Returns:
        What was done; ``features.json`` in the folder lists it.

    Raises:
        DataError: the dataset has no slides, or the folder holds other features.
        TrainingError: the encoder cannot be used.
    """
    manifest = read_manifest(request.folder)
    jobs, aside = _jobs(request.folder, manifest)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    request.out.mkdir(mode=0o700, exist_ok=True)  # files are called as the slides
    busy = DataError(
        f"{request.out}: another oncofed data features is at work there. Wait for it, or name another --out"
    )
    with sole_process(request.out / _LOCK_FILE, busy):
        places = find_places(request.device, request.workers)[: max(1, len(jobs))]
        with Pool(request.encoder, request.out, places) as pool:
            ready = pool.ready()
            kept = _begun(request, manifest, ready)
            forget_others(request.out, {job.name for job in jobs} | set(aside))
            patients = {entry.name: entry.patient for entry in manifest.entries}
            missing: list[SlideJob] = []
            there: dict[str, KeptSlide] = {}
            for job in jobs:
                if _is_done(job, kept, request.out, ready.key):
                    there[job.name] = kept.slides[job.name]
                else:
                    missing.append(job)
            kept = kept.model_copy(update={"slides": there, "set_aside": aside})
            write_kept(request.out, kept)
            found = Extracted(kept, processes=len(places))
            _follow(pool, missing, found, request.out, ready, patients, advance)
        for job in jobs:
            remove_spool(request.out / SPOOL_FOLDER, job.name)
        write_table(request.out, manifest, found.kept)
    return found


def _follow(
    pool: Pool,
    missing: list[SlideJob],
    found: Extracted,
    out: Path,
    ready: Ready,
    patients: dict[str | None, str | None],
    advance: Callable[[str, int, int], None] | None,
) -> None:
    """Keep the list of what is done up to date."""
    begun = time.monotonic()
    by_number = {job.number: job for job in missing}
    total = sum(len(job.tiles) for job in missing)
    before: dict[int, int] = {}
    done: dict[int, int] = {}
    for message in pool.work(sorted(missing, key=lambda job: -len(job.tiles))):
        if isinstance(message, Progress):
            before.setdefault(message.number, message.tiles)
            done[message.number] = message.tiles
        elif isinstance(message, SetAside):
            total -= len(by_number[message.number].tiles)
            done.pop(message.number, None)
            found.kept.set_aside[by_number[message.number].name] = message.reason
            write_kept(out, found.kept)
        elif isinstance(message, Done):
            job = by_number[message.number]
            found.slides += 1
            found.kept.slides[job.name] = KeptSlide(
                file=file_of(job.name),
                made_of=made_of(ready.key, job.source, job.tiles),
                tiles=len(job.tiles),
                tile=job.tiles.spec.size,
                mpp=round(job.tiles.spec.mpp, 6),
                patient=patients.get(job.name),
            )
            write_kept(out, found.kept)
            remove_spool(out / SPOOL_FOLDER, job.name)
        if advance and total:
            advance(f"tiles of {len(missing)} slides", sum(done.values()), total)
    found.tiles = sum(done.values()) - sum(before[number] for number in done)
    found.seconds = time.monotonic() - begun


def _jobs(folder: Path, manifest: Manifest) -> tuple[list[SlideJob], dict[str, str]]:
    """Return the dataset's slides, and why others are none.

    Raises:
        DataError: it has none at all.
    """
    jobs: list[SlideJob] = []
    aside = {bad.name: bad.reason for bad in manifest.quarantine}
    for number, entry in enumerate(manifest.entries):
        if entry.tiles is None:
            continue
        case = case_of(folder, manifest, entry)
        assert case.tiles
        try:
            jobs.append(SlideJob(number, case.name, read_tiles(case.image, case.tiles), slide_source(case)))
        except FileNotFoundError:
            aside[case.name] = "is missing. Copy it there again, or register the folder anew"
        except (DataError, OSError) as error:
            aside[case.name] = reason_of(error)
    if not jobs and not aside:
        raise DataError(
            f"{folder}: a dataset without slides. Register slides: oncofed data register FOLDER --task slides"
        )
    return jobs, aside


def _begun(request: ExtractionRequest, manifest: Manifest, ready: Ready) -> Kept:
    """Return what the folder holds already.

    Raises:
        DataError: features of another encoder, other weights, or another dataset.
    """
    digest = digest_of(ready.digest)
    kept = read_kept(request.out)
    fresh = Kept(dataset=manifest.name, encoder=request.encoder.network, digest=digest, size=ready.size)
    if kept is None:
        return fresh
    stated = [(kept.dataset, fresh.dataset), (kept.encoder, fresh.encoder), (kept.digest, fresh.digest)]
    for what, (old, new) in zip(("the dataset", "the encoder", "the weights"), stated, strict=True):
        if old != new and kept.slides:
            raise DataError(
                f"{request.out}: holds features of {what} {str(old)[:12]}, expected {str(new)[:12]}. Name another "
                "folder with --out, or remove this one"
            )
    return kept.model_copy(update=fresh.model_dump(include={"dataset", "encoder", "digest", "size"}))


def _is_done(job: SlideJob, kept: Kept, out: Path, encoder: str) -> bool:
    slide = kept.slides.get(job.name)
    if slide is None or not (out / slide.file).is_file():
        return False
    return slide.made_of == made_of(encoder, job.source, job.tiles)
