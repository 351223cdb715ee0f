"""Wrong usage of ``oncofed job tune`` is told before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Outcome


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--over", "learning_rat", "--site", "east=nowhere"), "is training.learning_rate meant?"),
        (("--over", "learning_rate"), "expected either --site NAME=DATASET, once for each site, or --kit KIT"),
        (("--over", "strategy.mu", "--site", "east=nowhere"), "is no setting of the job's strategy, fedavg"),
    ],
)
def test_wrong_usage_is_explained(
    run: Callable[..., Outcome], job: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run("job", "tune", job, "--budget", "2", *arguments, "--out", tmp_path / "found")
    assert (done.status, said in done.text) == (2, True), done.text
    assert not (tmp_path / "found").exists()
