"""Class and module paths in kits, jobs and programs exist."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import oncofed
from oncofed.alliance.kits import APPROVED_CLASSES, OUTBOUND_FILTER, provision
from oncofed.alliance.spec import AllianceSpec
from oncofed.job.flare import export_job
from oncofed.job.spec import read_any_job

# FLARE's classes for job processes, which oncofed's replace.
REPLACED = ("ProcessJobLauncher", "GPUResourceManager", "GPUResourceConsumer")
DOTTED = re.compile(r"(oncofed|nvflare)(\.[A-Za-z_]\w*){2,}")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = AllianceSpec(sites=("east", "west"), relays={"relay": {"port": 8100, "sites": ["east"]}})
    return provision(spec, tmp_path_factory.mktemp("alliance"))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("hippocampus_segmentation", "federated_profile"):
        export_job(read_any_job(name), folder / name)
    return folder


def components(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield class path and arguments of FLARE's components."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"], value.get("args", {})
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from components(inner)


def components_in(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    found = [c for file in sorted(folder.rglob("*.json")) for c in components(json.loads(file.read_text()))]
    assert found, folder
    return found


def require_constructible(path: str, arguments: dict[str, Any]) -> None:
    kind = pkgutil.resolve_name(path)
    assert inspect.isclass(kind), path
    inspect.signature(kind).bind(**arguments)


def exists(path: str) -> bool:
    """Return whether a path exists.

    It leads to a module, to a module's name or to an attribute of that.
    """
    try:
        pkgutil.resolve_name(path)
    except ImportError:
        return False
    except AttributeError:
        owner = path.rpartition(".")[0]
        return exists(owner) and not inspect.ismodule(pkgutil.resolve_name(owner))
    return True


@pytest.mark.parametrize("participant", ["localhost", "east", "west"])
def test_a_kit_names_classes_that_exist_and_take_its_arguments(kits: Path, participant: str) -> None:
    for path, arguments in components_in(kits / participant / "local"):
        require_constructible(path, arguments)
        assert not path.endswith(REPLACED), path


def test_a_job_names_approved_classes_that_exist_and_take_its_arguments(jobs: Path) -> None:
    for path, arguments in components_in(jobs):
        require_constructible(path, arguments)
        assert path in APPROVED_CLASSES


def test_every_approved_class_exists() -> None:
    for path in (*APPROVED_CLASSES, OUTBOUND_FILTER):
        assert inspect.isclass(pkgutil.resolve_name(path)), path


@pytest.mark.parametrize("participant", ["east", "west"])
def test_a_sites_added_components_are_approved(kits: Path, participant: str) -> None:
    allowed = json.loads((kits / participant / "local" / "resources.json").read_text())["class_allow_list"]
    added = json.loads((kits / participant / "local" / "privacy.json").read_text())
    assert {path for path, _ in components(added)} == {OUTBOUND_FILTER}
    assert OUTBOUND_FILTER in allowed


def test_every_module_or_class_named_in_a_string_exists() -> None:
    named: dict[str, str] = {}
    for file in Path(oncofed.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
                named[node.value] = file.name
    assert "oncofed.flare.executor.SiteExecutor" in named
    assert not {path: file for path, file in named.items() if not exists(path)}
