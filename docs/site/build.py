"""Build the documentation's site: ``make docs``.

Pages are copied as they lie in the repository; tables of settings, commands and Python's names are generated, and
notebooks are run and shown with their outputs. A page without a file that it links to, or without its anchor, ends the
build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

import oncofed
from notebooks import executed, page_of
from oncofed.cli.main import app
from settings_reference import settings_page

ROOT = Path(__file__).parents[2]
_SOURCE = ROOT / "workspace" / ".cache" / "docs" / "source"
_FOLDERS = ("docs", "jobs", "custom/oncofed", "benchmarks", "provisioning", "workspace")
# Linked from pages: shown as files.
_OTHERS = re.compile(r"\]\(([^)#\s]+)")
# What classes and decorators of the public names take.
_BESIDE = {
    "oncofed.training": ("Plan", "Evaluation"),
    "oncofed.data.cases": ("Cases",),
    "oncofed.tasks.base": ("Task",),
    "oncofed.algorithms.base": ("Algorithm",),
}


def main() -> int:
    """Build the site; return mkdocs' exit status."""
    shutil.rmtree(_SOURCE, ignore_errors=True)
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    for folder in _FOLDERS:
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "--", f"{folder}/**/*.md", f"{folder}/*.md"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        pages += [ROOT / name for name in tracked.splitlines()]
    for page in dict.fromkeys(pages):
        _copy(page)
        for link in _OTHERS.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if not link.startswith("http") and target.is_file() and target.suffix != ".md":
                _copy(target)
    for name, text in {"settings": settings_page(), "commands": _commands(), "python": _python()}.items():
        _write(_SOURCE / "reference" / f"{name}.md", text)
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        _copy(notebook)
        _write(_SOURCE / "docs" / "notebooks" / f"{notebook.stem}.md", page_of(executed(notebook), notebook.name))
    cards = sorted((ROOT / "jobs").glob("*/README.md"))
    titles = {card: card.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for card in cards}
    listed = "".join(f"\n      - {title!r}: {card.relative_to(ROOT)}" for card, title in titles.items())
    settings = (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8").replace("CARDS", listed)
    shutil.copytree(ROOT / "docs" / "site" / "iframe-worker", _SOURCE / "assets" / "iframe-worker")
    file = _SOURCE.parent / "mkdocs.yml"
    _write(file, settings)
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(file)]
    return subprocess.run(line, check=False).returncode


def _copy(file: Path) -> None:
    target = _SOURCE / file.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _commands() -> str:
    """Return the page of all commands, by typer."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="oncofed"), name="oncofed")
    return text.replace("# `oncofed`", "# Commands", 1)


def _python() -> str:
    """Return the page of Python's names."""
    public = [f"::: oncofed.{name}" for name in oncofed.__all__]
    beside = [f"::: {module}.{name}" for module, names in _BESIDE.items() for name in names]
    options = "\n    options: {heading_level: 3}"
    parts = [
        "# Python",
        "What notebooks and packages of your own use; all else may change from release to release.",
        "## import oncofed",
        *(f"{line}{options}" for line in public),
        "## What they take and return",
        *(f"{line}{options}" for line in beside),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
