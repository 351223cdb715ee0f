"""An algorithm is one file, built-in or from a package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import oncofed
from commands import program
from oncofed.algorithms import algorithm_class, algorithm_names, register_algorithm
from oncofed.algorithms.fedavg import FedAvg
from oncofed.errors import SpecError
from oncofed.plugins import registering

PACKAGE = Path(oncofed.__file__).parent

_OF_PACKAGE = '''
from typing import Literal

from pydantic import Field

from oncofed.algorithms import Algorithm, register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings


class HalfSettings(AlgorithmSettings):
    """A part of the mean update."""

    name: Literal["half"]
    part: float = Field(0.5, gt=0, le=1, description="of the mean update")


@register_algorithm("half")
class Half(Algorithm[HalfSettings]):
    Settings = HalfSettings

    def update_tensor(self, name, value, deltas, shares):
        return value + self.settings.part * (super().update_tensor(name, value, deltas, shares) - value)
'''

_USES_IT = """
import torch
from oncofed.algorithms import Update, algorithm_names
from oncofed.errors import SpecError
from oncofed.job.spec import read_job
import sys
job = read_job(sys.argv[1])
assert "half" in algorithm_names()
changed = job.changed({"strategy": {"name": "half", "part": 0.25}})
assert "part: 0.25" in changed.to_yaml()
half = changed.federation().algorithm(frozenset({"w"}))
print(half.aggregate({"w": torch.ones(1)}, [Update("a", {"w": torch.full((1,), 4.0)}, 1)], 1)["w"].item())
try:
    job.changed({"strategy": {"name": "half", "whole": 1}})
except SpecError as error:
    print(error)
"""


def test_an_installed_package_brings_an_algorithm(tmp_path: Path, job: Path) -> None:
    (tmp_path / "half_updates.py").write_text(_OF_PACKAGE)
    info = tmp_path / "half_updates-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-updates\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[oncofed.algorithms]\nhalf = half_updates\n")
    found = program(_USES_IT, job, home=tmp_path)
    assert found.stderr == ""
    assert found.stdout.splitlines() == [
        "2.0",
        "the changed job: unknown setting strategy.whole; allowed here: name, part",
    ]


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[oncofed.algorithms]\nbroken = no_such_module\n")
    found = program("from oncofed.algorithms import algorithm_names; algorithm_names()", home=tmp_path)
    assert "the package of the strategy 'broken' (no_such_module) cannot be imported" in found.stderr


def test_a_broken_package_is_named_and_known_algorithms_stay(tmp_path: Path, job: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[oncofed.algorithms]\nbroken = no_such_module\n")
    text = """
from oncofed.errors import SpecError
from oncofed.algorithms.plan import FederationPlan
for name in ("no_such", "no_such", "krum"):
    try:
        print(FederationPlan.model_validate({"strategy": name}).strategy.name)
    except SpecError as error:
        print(error)
"""
    found = program(text, home=tmp_path)
    first, second, third = found.stdout.splitlines()
    assert first == second
    assert "the package of the strategy 'broken' (no_such_module) cannot be imported" in first
    assert third == "krum"


def test_threads_find_algorithms_that_another_one_loads(tmp_path: Path) -> None:
    text = """
import threading
from oncofed.algorithms.registry import ALGORITHMS
assert not ALGORITHMS._is_loaded
found, start = [], threading.Barrier(8)
def look():
    start.wait()
    found.append(ALGORITHMS.get("krum") is not None and len(ALGORITHMS.names()) >= 17)
threads = [threading.Thread(target=look) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(found)
"""
    found = program(text, home=tmp_path)
    assert found.stdout.strip() == str([True] * 8)


def test_built_in_algorithms_never_count_as_a_packs(tmp_path: Path) -> None:
    text = """
from oncofed.algorithms import algorithm_names
from oncofed.plugins import registering
with registering("0" * 64):
    print("krum" in algorithm_names())
"""
    found = program(text, home=tmp_path)
    assert found.stdout.strip() == "True"


def test_a_name_that_is_taken_is_refused() -> None:
    class Other(FedAvg):
        """Not the known one."""

    with pytest.raises(SpecError, match=r"strategy 'fedavg' is oncofed\.algorithms\.fedavg\.FedAvg"):
        register_algorithm("fedavg")(Other)
    assert algorithm_class("fedavg") is FedAvg


def test_a_pack_cannot_bring_an_algorithm() -> None:
    # The error goes through the block: a pack that brought one is not loaded, for the tests after this one either.
    with pytest.raises(SpecError, match="a pack cannot bring strategy 'evil'"), registering("0" * 64):
        register_algorithm("evil")(FedAvg)
    assert "evil" not in algorithm_names()


def test_no_other_file_names_an_algorithm() -> None:
    """Names that are ordinary words are searched as classes only."""
    words = {"median", "cyclic", "swarm"}
    classes = {algorithm_class(name) for name in algorithm_names()} - {FedAvg}
    forbidden = {kind.__name__ for kind in classes} | {kind.Settings.__name__ for kind in classes}
    names = set(algorithm_names()) - words - {"fedavg"}
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.parent == PACKAGE / "algorithms":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            named = isinstance(node, ast.Name) and node.id in forbidden
            written = isinstance(node, ast.Constant) and node.value in names
            if named or written:
                found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
