"""``oncofed new``: starting points that run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from oncofed.cli.common import plain_console
from oncofed.errors import SpecError

app = typer.Typer(
    help="Start something of your own: a job, a network, an algorithm, a task or a site; each runs as it is written.",
    no_args_is_help=True,
)

_TEMPLATES = Path(__file__).parent / "starting_points"
_JINJA = ".jinja"
_JOB, _MODULE, _SITE = r"[a-z0-9][a-z0-9_-]{0,62}", r"[a-z][a-z0-9_]{0,62}", r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"

Name = Annotated[str, typer.Argument(help="Of what is made, and of its folder.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to make; by default the name, here.")]


@app.command()
def job(name: Name, out: Out = None) -> None:
    """Write a job that finds lesions on MRI, and its card: change data, task and network."""
    folder = _write("job", name, _JOB, "lower case, digits, _ and -", out)
    _say(folder, f"oncofed job check {folder}")


@app.command()
def network(name: Name, out: Out = None) -> None:
    """Write a package with a network, and its test: for a pack, or for all sites to install."""
    folder = _write("network", name, _MODULE, "a name for a Python module: lower case, digits and _", out)
    _say(folder, f"oncofed job pack {folder / name}")


@app.command()
def algorithm(name: Name, out: Out = None) -> None:
    """Write a package with a federated algorithm, and its test."""
    folder = _write("algorithm", name, _MODULE, "a name for a Python module: lower case, digits and _", out)
    _say(folder, f"pip install ./{folder}")


@app.command()
def task(name: Name, out: Out = None) -> None:
    """Write a package with a task, its loss and its settings, and its test."""
    folder = _write("task", name, _MODULE, "a name for a Python module: lower case, digits and _", out)
    _say(folder, f"pip install ./{folder}")


@app.command()
def site(
    name: Name,
    out: Out = None,
    patients: Annotated[int, typer.Option(min=10, max=1000, help="Invented patients, each with one lesion.")] = 16,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the patients; by default it follows from the name.")
    ] = None,
) -> None:
    """Write a site with invented patients, and an alliance on this machine to run it in."""
    from oncofed.data.invented import make_patients

    number = seed if seed is not None else sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 10_000
    values = {"patients": patients, "seed": number}
    folder = _write("site", name, _SITE, "letters, digits, _ and -", out, **values)
    make_patients(folder / "data", patients, number)
    _say(folder, f"oncofed data register {folder / 'data'} --dataset {name.lower()}")


def _write(kind: str, name: str, pattern: str, allowed: str, out: Path | None, **more: int) -> Path:
    """Write a starting point; return its folder.

    Raises:
        SpecError: the name does not fit, or the folder is there already.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not re.fullmatch(pattern, name):
        raise SpecError(f"found the name {name!r}, expected {allowed}")
    folder = out or Path(name)
    if folder.exists():
        raise SpecError(f"{folder} is there already, and nothing was changed: name another folder with --out")
    # Code and YAML are written, not pages: nothing is escaped.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    values = {
        "name": name,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "project": name.replace("_", "-"),
        "folder": str(folder),
        **more,
    }
    templates = [path for path in sorted((_TEMPLATES / kind).rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    for template in templates:
        place = template.relative_to(_TEMPLATES / kind).as_posix().removesuffix(_JINJA).replace("NAME", name)
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = environment.get_template(template.relative_to(_TEMPLATES).as_posix()).render(values)
        target.write_text(text, encoding="utf-8")
    return folder


def _say(folder: Path, then: str) -> None:
    console = plain_console()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gz"):
        console.print(f"  {file}", markup=False)
    console.print(f"What to do with it is in {folder / 'README.md'}. First: {then}", markup=False)
