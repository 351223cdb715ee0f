"""Patches fit the installed FLARE, and are all listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import oncofed
from oncofed.flare import patches
from oncofed.flare.patches import PATCHES, source_digest

_PACKAGE = Path(oncofed.__file__).parent
_FOLDER = Path(patches.__file__).parent


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_matches_the_installed_flare(name: str) -> None:
    changed = []
    for code, digest in PATCHES[name].code.items():
        try:
            found = source_digest(code)
        except (AttributeError, ImportError) as error:
            found = f"gone ({error})"
        if found != digest:
            changed.append(f'"{code}": "{found}"')
    assert not changed, (
        f"FLARE {version('nvflare')} differs from {PATCHES[name].flare} under flare/patches/{name}.py. Read the code "
        f"below beside the patch's docstring: is the patch still needed, does it still fit? Then put the new digests "
        f"and the version into PATCHES[{name!r}]: {', '.join(changed)}"
    )


def test_every_patch_is_listed_with_its_flare_version() -> None:
    assert set(PATCHES) == {path.stem for path in _FOLDER.glob("*.py")} - {"__init__"}
    for name, patch in PATCHES.items():
        assert f"FLARE {patch.flare} " in ast.get_docstring(_tree(_FOLDER / f"{name}.py"))


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_lists_the_attributes_it_replaces(name: str) -> None:
    assert set(_replaced(_tree(_FOLDER / f"{name}.py"))) == PATCHES[name].replaces


def test_only_patches_replace_parts_of_flare() -> None:
    found = {
        str(path.relative_to(_PACKAGE)): [name for name in _replaced(_tree(path), parameters=False) if _is_flares(name)]
        for path in _PACKAGE.rglob("*.py")
        if path.parent != _FOLDER
    }
    assert not {path: names for path, names in found.items() if names}


def _is_flares(name: str) -> bool:
    return name.startswith("nvflare.")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _replaced(tree: ast.Module, parameters: bool = True) -> Iterator[str]:
    """Yield the attributes of imported names that a module sets.

    Args:
        tree: the module.
        parameters: include attributes of parameters whose type is an imported class.
    """
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
            names |= {alias.name: alias.name for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    if parameters:
        arguments = [node for node in ast.walk(tree) if isinstance(node, ast.arg)]
        names |= {a.arg: names[a.annotation.id] for a in arguments if getattr(a.annotation, "id", None) in names}
    targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    for target in (part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])):
        first, _, rest = ast.unparse(target).partition(".")
        if isinstance(target, ast.Attribute) and names.get(first, "typing.Any") != "typing.Any":
            yield f"{names[first]}.{rest}"
