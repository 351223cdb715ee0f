"""Terminals that lack signs, and output that no terminal reads."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.table import Table

from commands import Outcome
from oncofed.audit import AuditLog
from oncofed.cli import main as entry
from oncofed.cli.common import show_table
from oncofed.cli.terminal import echo_json, fit_output, plain
from oncofed.processes import process_environment
from oncofed.site import auditing

_REPORTS = "rich#212, rich#826, rich#68, huami-token#5"


class _Terminal(io.TextIOWrapper):
    """An output of some encoding, whose text can be read."""

    def __init__(self, encoding: str, errors: str = "strict", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors)
        self.charset, self._terminal = encoding, terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.charset)  # type: ignore[attr-defined]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run a command at a terminal of an encoding.

    Returns its exit status and all output.
    """

    def call(encoding: str, *arguments: str | Path, terminal: bool = False) -> tuple[int, str]:
        out, err = (_Terminal(encoding, terminal=terminal) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "argv", ["oncofed", *map(str, arguments)])
        monkeypatch.setenv("TERM", "xterm")
        status = 0
        try:
            entry.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, out.text() + err.text()

    return call


def _images(folder: Path) -> Path:
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)
    for number, name in enumerate(("a", "Müller", "łódź")):
        Image.fromarray(values[number]).save(folder / f"{name}.png")
    return folder


@pytest.mark.wild(_REPORTS, "a terminal that cannot print a dash, an ellipsis or a frame")
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "iso8859-15", "cp437", "koi8-r"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_command_ends_well_at_a_terminal_of_any_encoding(at, encoding, terminal, tmp_path) -> None:
    out = tmp_path / "dataset"
    more = ("--dataset", "t", "--out", out, "--workers", "1")
    status, printed = at(encoding, "data", "register", _images(tmp_path / "images"), *more, terminal=terminal)
    assert status == 0
    assert "3 cases" in printed
    assert "-" in printed  # no label: a dash
    name = "Müller" if encoding in ("latin-1", "cp1252", "iso8859-15", "cp437") else "Muller"
    assert name in printed
    # It is the terminal that lacks signs, not the dataset.
    names = {entry["name"] for entry in json.loads((out / "dataset.json").read_text(encoding="utf-8"))["training"]}
    assert names == {"a", "Müller", "łódź"}


@pytest.mark.wild(_REPORTS, "usage, help and errors at a terminal in ASCII")
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--help",), 0, "Exit status"),
        (("job", "lisst"), 2, "No such command"),
        (("job", "show", "Müller…"), 2, "Muller..."),
        (("job", "list"), 0, "\tunet"),
        (("job", "networks"), 0, "tiles of slides\t-\t"),
    ],
)
def test_messages_use_only_characters_of_the_terminal(at, arguments, status, said) -> None:
    found, printed = at("ascii", *arguments, terminal=False)
    assert found == status
    assert said in printed


@pytest.mark.wild("cpython#132124", "JSON where the output lacks signs")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_what_it_is(encoding, monkeypatch) -> None:
    values = {"name": "Müller – 𝄞…", "path": "/数据/é"}
    out = _Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    fit_output()
    echo_json(json.dumps(values, ensure_ascii=False))
    assert json.loads(out.text()) == values


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_can_be_shown_in_ascii_and_ascii_is_left_alone(text: str) -> None:
    shown = plain(text)
    assert shown.isascii()
    assert plain(shown) == shown
    letters = [c for c in text if "LATIN" in unicodedata.name(c, "") and " WITH ACUTE" in unicodedata.name(c, "")]
    assert not letters or "?" not in plain("".join(letters[:1]))


@pytest.mark.wild("PEP 383", "a file's name that is no UTF-8, printed at a terminal in UTF-8")
def test_undecodable_bytes_of_a_name_are_shown_as_numbers(monkeypatch) -> None:
    out = _Terminal("utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    fit_output()
    sys.stdout.write(b"M\xfcller.png".decode("utf-8", "surrogateescape") + " –")
    assert out.text() == "M\\xfcller.png –"


@pytest.mark.wild(_REPORTS, "logs of processes that are started at such a terminal")
def test_logs_are_in_utf_8_whatever_the_terminal(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    printing = [sys.executable, "-c", r"print('Müller – \udcfc')"]
    done = subprocess.run(printing, env=process_environment(tmp_path, 1), capture_output=True, check=True)
    assert done.stdout.decode("utf-8") == "Müller – \\udcfc\n"


def _table(rows: list[tuple[str, ...]], title: str = "") -> Table:
    table = Table("site", "[bold]what[/]", "facts", title=title)
    for row in rows:
        table.add_row(*row)
    return table


@pytest.mark.wild("rich#501, snowflake-cli#2941", "output that is piped, cut at 80 columns")
def test_a_piped_table_is_one_line_per_row(monkeypatch) -> None:
    out = _Terminal("utf-8")
    facts = "x" * 300
    console = Console(file=out, width=80)
    show_table(_table([("east", "[red]left[/]", facts), ("west\nwing", "", "a\tb")], "Two [red]sites[/]"), console)
    assert out.text().splitlines() == [
        "Two sites",
        "site\twhat\tfacts",
        f"east\tleft\t{facts}",
        "west wing\t\ta b",
    ]


def test_a_table_at_a_terminal_is_a_table() -> None:
    out = _Terminal("utf-8", terminal=True)
    show_table(_table([("east", "left", "some")]), Console(file=out, width=80))
    assert "┃" in out.text()
    assert "\t" not in out.text()


@pytest.mark.wild("NeMo-Gym#2949", "colours asked for where nobody sees them")
def test_forced_colours_do_not_make_a_pipe_a_terminal(monkeypatch, run: Callable[..., Outcome]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    printed = run("job", "list").output
    assert "\x1b" not in printed
    assert {line.count("\t") for line in printed.splitlines()} == {3}


@pytest.mark.wild("rich#501", "an audit log that is piped, its digests cut")
def test_an_audit_log_that_is_piped_holds_whole_entries(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    digest = "d" * 64
    for number in range(3):
        AuditLog(tmp_path).write("message left", "eng@x.org", job=f"job-{number}", digest=digest, bytes=10**number)
    lines = run("site", "audit", "show", "--folder", tmp_path).output.splitlines()
    assert len(lines) == 1 + len(auditing.entries(tmp_path))
    assert all(digest in line and "message left" in line for line in lines[1:])


def test_every_command_prints_its_tables_in_one_way() -> None:
    for path in Path(entry.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
            for target in node.targets
            if isinstance(target, ast.Name) and getattr(node.value.func, "id", "") in ("Table", "_table")
        }
        printed = {
            argument.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "print"
            for argument in ast.walk(ast.Tuple(node.args, ast.Load()))
            if isinstance(argument, ast.Name)
        }
        if path.name != "common.py":
            assert not names & printed, path.name
