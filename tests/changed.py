"""Names the test files next to what changed.

``python tests/changed.py [REF]`` compares with a commit, else with the last one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path(__file__).parents[1]
# Where modules lie, each with what their tests' folders lie in.
_PLACES = ("custom/oncofed", "benchmarks/lab", "benchmarks", "tests")
# Files with quick tests take three CPU seconds each, on average.
_MOST = 40


def main() -> None:
    """Print the files, nearest first."""
    changed = _changed(sys.argv[1] if len(sys.argv) > 1 else "HEAD")
    nearest = near(changed, {path: _imports(_ROOT / path) for path in _test_files()})
    if not nearest:
        sys.stderr.write(f"no test is next to the {len(changed)} changed files; all of them: make test\n")
    elif len(nearest) > _MOST:
        sys.stderr.write(f"the {_MOST} nearest of {len(nearest)} files with tests; all of them: make test\n")
    sys.stdout.write("\n".join(nearest[:_MOST]))


def near(changed: Iterable[str], tests: dict[str, frozenset[str]]) -> list[str]:
    """Return the test files next to changed files.

    First those that changed, then those that bear a changed module's name, then those that import one.

    Args:
        changed: paths from the repository's root.
        tests: path of each test file -> modules and their names that it imports.
    """
    names = {path: _module(path) for path in changed}
    modules = {name for name in names.values() if name}
    own = [path for path in names if path in tests]
    named = [path for path in tests if any(_bears(path, name) for name in modules)]
    importing = [path for path, imported in tests.items() if imported & modules]
    return list(dict.fromkeys([*own, *named, *importing]))


def _module(path: str) -> str:
    """Return the name by which a file is imported; empty if it is not."""
    if not path.endswith(".py"):
        return ""
    place = next((place for place in _PLACES if path.startswith(f"{place}/")), None)
    if place is None:
        return ""
    parts = PurePosixPath(path).relative_to(place).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("oncofed", *parts) if place == _PLACES[0] else parts)


def _bears(path: str, module: str) -> bool:
    """Return whether a test file is of a module's room and has its name."""
    *room, name = module.removeprefix("oncofed.").split(".")
    file = PurePosixPath(path)
    return file.stem == f"test_{name}" and (not room or room[0] in file.parts)


def _imports(path: Path) -> frozenset[str]:
    return frozenset(_imported(ast.parse(path.read_text(encoding="utf-8"))))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _test_files() -> list[str]:
    return sorted(path.relative_to(_ROOT).as_posix() for path in (_ROOT / "tests").rglob("test_*.py"))


def _changed(reference: str) -> list[str]:
    """Return changed and new files; of the last commit where nothing is changed since."""
    new = _git("ls-files", "--others", "--exclude-standard")
    found = [*_git("diff", "--name-only", "--diff-filter=d", reference), *new]
    return found or _git("diff", "--name-only", "--diff-filter=d", f"{reference}~1", reference)


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", "-C", _ROOT, *arguments], check=True, capture_output=True, text=True).stdout.split()


if __name__ == "__main__":
    main()
