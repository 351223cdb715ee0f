"""Features of a dataset's slides: the same after a kill, and from any processes."""

from __future__ import annotations

import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import Outcome, program
from oncofed.data.cases import read_cases
from oncofed.data.features import read_features
from oncofed.data.features.kept import read_kept, slide_source
from oncofed.data.features.spool import SPOOL_FOLDER
from oncofed.data.label_mapping import Supervision
from oncofed.data.manifest import read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.data.spec import DataSpec, SplitSpec
from oncofed.data.tiles import read_tiles
from oncofed.errors import DataError
from oncofed.tasks.bags import slide_tiles
from oncofed.tasks.encoder import Encoder, EncoderSpec, extract
from oncofed.tasks.extraction import ExtractionRequest, extract_dataset
from oncofed.tasks.extraction.messages import Done, Message, Progress, SetAside, SlideJob
from oncofed.tasks.extraction.worker import Extraction
from synthetic import make_slides

CPU = torch.device("cpu")
SPEC = EncoderSpec()
# Killed with SIGKILL when a number of the first slide's tiles is done, all of which have reached the disk.
KILLED = """
import os, pickle, signal, sys
import torch
from pathlib import Path
from oncofed.data.features import spool
from oncofed.tasks.encoder import Encoder, EncoderSpec
from oncofed.tasks.extraction.messages import Progress
from oncofed.tasks.extraction.worker import Extraction

spool._SECONDS_BETWEEN_MARKS = 0.0
jobs = pickle.loads(Path(sys.argv[1]).read_bytes())

def tell(message):
    if isinstance(message, Progress) and message.tiles >= 40:
        os.kill(os.getpid(), signal.SIGKILL)

encoder = Encoder(EncoderSpec(), torch.device("cpu"))
encoder.at_once = 10
Extraction(encoder, "colour", Path(sys.argv[2]), lambda: jobs.pop(0) if jobs else None, tell, 2).run()
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides of some 80 tiles, one of which is cut off, and their dataset."""
    folder = tmp_path_factory.mktemp("slides")
    make_slides(folder / "in", 4, side=768)
    cut = folder / "in" / "slide-003.tif"
    cut.write_bytes(cut.read_bytes()[:20_000])
    table, tiles = folder / "in" / "labels.csv", TileSpec(64, 1.0, 0.25)
    register(RegisterOptions(folder / "in", "slides", folder / "set", "slides", table=table, tiles=tiles, workers=1))
    return folder


@pytest.fixture
def dataset(registered: Path, tmp_path: Path) -> Path:
    """The dataset of this test alone, beside its slides."""
    shutil.copytree(registered, tmp_path, symlinks=True, dirs_exist_ok=True)
    source = tmp_path / "set" / "source"
    source.unlink()
    source.symlink_to(tmp_path / "in")
    return tmp_path / "set"


def _jobs(dataset: Path) -> list[SlideJob]:
    cases = read_cases(dataset, SplitSpec(test=0, validation=0), 1, Supervision("class")).train
    found = []
    for number, case in enumerate(sorted(cases, key=lambda case: case.name)):
        assert case.tiles
        found.append(SlideJob(number, case.name, read_tiles(case.image, case.tiles), slide_source(case)))
    return found


def _extract(jobs: list[SlideJob], out: Path, tell: Callable[[Message], None] | None = None) -> list[Message]:
    """Extract in this process, ten tiles at once."""
    out.mkdir(exist_ok=True)
    told: list[Message] = []

    def also(message: Message) -> None:
        told.append(message)
        if tell:
            tell(message)

    waiting = list(jobs)
    encoder = Encoder(SPEC, CPU)
    encoder.at_once = 10
    Extraction(encoder, "colour", out, lambda: waiting.pop(0) if waiting else None, also, 2).run()
    return told


def _features(out: Path) -> dict[str, bytes]:
    return {path.name: read_features(path).features.tobytes() for path in sorted(out.glob("*.h5"))}


def test_a_killed_process_goes_on_within_a_slide_to_the_same_bits(dataset: Path, tmp_path: Path) -> None:
    jobs = _jobs(dataset)
    _extract(jobs, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    killed = program(KILLED, tmp_path / "jobs", tmp_path / "killed", home=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list((tmp_path / "killed").glob("*.h5"))
    values = tmp_path / "killed" / SPOOL_FOLDER / f"{jobs[0].name}.values"
    values.write_bytes(values.read_bytes() + b"half a vector")

    told = _extract(jobs, tmp_path / "killed")

    begun = next(message for message in told if isinstance(message, Progress))
    assert begun == Progress(0, 40)
    assert _features(tmp_path / "killed") == _features(tmp_path / "whole")


def test_what_was_begun_for_other_tiles_is_not_gone_on_with(dataset: Path, tmp_path: Path) -> None:
    job = _jobs(dataset)[0]

    def stop(message: Message) -> None:
        if isinstance(message, Progress) and message.tiles >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _extract([job], tmp_path / "out", stop)
    fewer = replace(job, tiles=replace(job.tiles, x=job.tiles.x[1:], y=job.tiles.y[1:]))
    assert _extract([fewer], tmp_path / "out")[0] == Progress(0, 0)


def test_slides_beside_one_another_do_not_change_features_and_bad_ones_are_named(dataset: Path, tmp_path: Path) -> None:
    jobs = _jobs(dataset)
    for job in jobs[:3]:
        _extract([job], tmp_path / "alone")
    # Damaged after it was registered: a later tile's bytes are noise.
    path = jobs[1].tiles.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(data)
    told = _extract(jobs, tmp_path / "out")
    reasons = {message.number: message.reason for message in told if isinstance(message, SetAside)}
    assert list(reasons) == [1]
    assert "damaged" in reasons[1]
    assert [message.number for message in told if isinstance(message, Done)] == [0, 2]
    alone = _features(tmp_path / "alone")
    assert _features(tmp_path / "out") == {name: alone[name] for name in (f"{jobs[0].name}.h5", f"{jobs[2].name}.h5")}


def test_several_processes_make_what_one_makes_and_training_reads_it(dataset: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    out = dataset / "features" / "colour"
    found = extract_dataset(
        ExtractionRequest(dataset, SPEC, out, "cpu", 2), lambda what, now, total: done.append((now, total))
    )
    kept = read_kept(out)
    assert kept
    assert kept == found.kept
    assert (found.slides, len(kept.slides)) == (3, 3)
    assert "cut off" in kept.set_aside["slide-003"]
    tiles = sum(slide.tiles for slide in kept.slides.values())
    assert done[-1] == (tiles, tiles) == (found.tiles, found.tiles)
    assert not (out / SPOOL_FOLDER).exists()

    data = DataSpec(dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(64, 64))
    cases = read_cases(dataset, SplitSpec(test=0, validation=0), 1, Supervision("class")).train
    slides = [slide_tiles(case, data) for case in cases]
    encoder = Encoder(SPEC, CPU)
    computed = dict(extract([replace(slide, kept=None) for slide in slides], encoder))
    encoder.stream = None  # type: ignore[assignment, method-assign] # computes nothing
    for number, features in extract(slides, encoder):
        assert torch.equal(features, computed.pop(number))
        bag = read_features(out / f"{cases[number].name}.h5")
        assert (bag.encoder, bag.digest, bag.tile, bag.mpp, bag.step) == ("colour", None, 64, 1.0, 64)
        assert bag.places is not None
        np.testing.assert_array_equal(bag.places, np.stack([slides[number].x, slides[number].y], axis=1))
    assert not computed


def test_the_command_names_what_to_do_with_the_features(
    run: Callable[..., Outcome], dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("data", "features", dataset, "--encoder", "colour", "--device", "cpu", "--out", out)
    told = run(*words)
    assert told.status == 3, "one slide is cut off"
    assert "3 slides" in told.text
    registered = f"oncofed data register {out} --features --labels {out / 'slides.csv'}"
    assert f"Next: {registered}" in told.text
    # The command does what it says.
    done = run(*registered.split()[1:], "--out", tmp_path / "again", "--workers", "1")
    assert done.status == 0, done.text
    assert len(read_manifest(tmp_path / "again").entries) == 3


def test_nothing_is_left_of_a_patient_who_withdrew(dataset: Path, tmp_path: Path) -> None:
    inside, outside = dataset / "features" / "colour", tmp_path / "out"
    for out in (inside, outside):
        extract_dataset(ExtractionRequest(dataset, SPEC, out, "cpu", 1))
        (out / SPOOL_FOLDER).mkdir()
        for name in ("slide-001.values", "slide-001.mark"):
            (out / SPOOL_FOLDER / name).touch()
    (dataset / ".prepared").mkdir()
    (dataset / ".prepared" / "0.safetensors").touch()
    source = tmp_path / "in"
    (source / "slide-001.tif").unlink()
    table = source / "labels.csv"
    table.write_text("".join(row for row in table.read_text().splitlines(True) if "slide-001" not in row))
    register(
        RegisterOptions(source, "slides", dataset, "slides", table=table, tiles=TileSpec(64, 1.0, 0.25), workers=1)
    )
    assert not list(dataset.joinpath(".prepared").iterdir())
    assert (outside / "slide-001.h5").is_file()  # until the next extraction there
    found = extract_dataset(ExtractionRequest(dataset, SPEC, outside, "cpu", 1))
    assert found.slides == 0  # the others were kept
    for out in (inside, outside):
        assert out.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in out.glob("[!.]*")} == {0o600}
        left = [path for path in out.rglob("*") if path.is_file()]
        assert {"slide-000.h5", "slide-002.h5", "features.json", "slides.csv"} <= {path.name for path in left}
        assert not [path for path in left if "slide-001" in path.name or b"slide-001" in path.read_bytes()]


def test_features_of_others_in_the_folder_are_not_mixed_with_these(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "features.json").write_text(
        '{"dataset": "slides", "encoder": "uni", "size": 2, "slides": {"a": {"file": "a.h5", "made_of": "", '
        '"tiles": 1, "tile": 1, "mpp": 1}}}'
    )
    with pytest.raises(DataError, match="holds features of the encoder uni, expected colour"):
        extract_dataset(ExtractionRequest(dataset, SPEC, out, "cpu", 1))
