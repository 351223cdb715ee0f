"""Processes that extract: which ones, and when one of them dies."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

import dying_extraction
import fake_smi
from oncofed.data.slides import TileSpec
from oncofed.data.tiles import SlideTiles
from oncofed.errors import TrainingError
from oncofed.tasks.encoder import EncoderSpec
from oncofed.tasks.extraction import pool as pool_module
from oncofed.tasks.extraction import worker
from oncofed.tasks.extraction.messages import Done, SetAside, SlideJob
from oncofed.tasks.extraction.pool import Pool, find_places
from oncofed.tasks.extraction.worker import Place


def _job(number: int, name: str) -> SlideJob:
    tiles = SlideTiles(Path(name), TileSpec(), np.zeros(1, np.int32), np.zeros(1, np.int32))
    return SlideJob(number, name, tiles, "")


def test_a_slide_that_ends_its_process_twice_is_set_aside_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "run", dying_extraction.run)
    fork = multiprocessing.get_context("fork")  # it computes nothing
    monkeypatch.setattr(pool_module, "ready_context", lambda *, forks: fork)
    jobs = [_job(number, name) for number, name in enumerate(["a", "b", "bad", "c", "d"])]
    with Pool(EncoderSpec(), tmp_path, [Place("cpu", None, 1)]) as pool:
        pool.ready()
        told = list(pool.work(jobs))
    assert sorted(message.number for message in told if isinstance(message, Done)) == [0, 1, 3, 4]
    assert [message.number for message in told if isinstance(message, SetAside)] == [2]


def test_there_is_one_process_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi.install(tmp_path / "bin", monkeypatch, [fake_smi.row(number) for number in range(3)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place.gpu for place in find_places("cuda", None)] == ["0", "1", "2"]
    assert [place.gpu for place in find_places("cuda:2,cuda:0", None)] == ["2", "0"]
    assert [place.device for place in find_places("cpu", 2)] == ["cpu", "cpu"]
    with pytest.raises(TrainingError, match="there is no GPU 3, this machine has 3"):
        find_places("cuda:3", None)
    with pytest.raises(TrainingError, match="expected cpu, cuda, or GPUs"):
        find_places("tpu", None)
