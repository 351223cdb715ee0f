"""What several tests need."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Tests run side by side, and each starts processes of its own: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from commands import Outcome, share_fork_server
from dealing import add_group, interleaved
from forked_worker import worker_forks
from oncofed.atomic import create_whole
from oncofed.cli import main as entry
from oncofed.lean_imports import import_monai_leanly
from synthetic import make_site, write_job

if TYPE_CHECKING:
    # Imported where it is needed: the process that only deals out tests begins seconds sooner.
    from oncofed.job.spec import JobSpec

_ROOT = Path(__file__).parents[1]
# Marker -> what its summary calls a test that passed, and the summary's columns: the marker's arguments, in order.
_TABLES = {"attack": ("stopped", ("what", "by", "logged")), "wild": ("right", ("report", "kind", "test"))}


# How long an example takes depends on what else the machine does: no test asserts a time. Where changes are judged, the
# same examples judge each of them; elsewhere new ones are looked for.
settings.register_profile(
    "untimed", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Heed signals that a shell's ``&`` or ``nohup`` ignores.

    Some tests stop processes by them. And no garbage is collected while the tests are imported.
    """
    gc.disable()
    importlib.import_module("oncofed.flare")  # which sees to FLARE's loggers, whatever imports FLARE first
    import_monai_leanly()
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Have workers be forks of one process."""
    forks = contextlib.ExitStack()
    config.add_cleanup(forks.close)
    interpreter = forks.enter_context(worker_forks(config.args))
    for spec in specs:
        spec.python = spec.python or interpreter


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let federations share what their jobs import."""
    if "federation" in item.keywords:
        share_fork_server()


@pytest.fixture(scope="session", autouse=True)
def fixed_salts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hash patients of datasets that this process registers by salts that are the same in each run.

    Who is tested follows from the salt. It is that of the folder's place below the test's own, so that two sites have
    two; a test that wants another one writes it first.
    """
    tests = tmp_path_factory.getbasetemp()

    def create_fixed(path: Path, contents: bytes) -> None:
        is_of_test = path.name == ".salt" and path.absolute().is_relative_to(tests)
        place = "/".join(path.absolute().relative_to(tests).parts[1:]) if is_of_test else ""
        create_whole(path, hashlib.sha256(place.encode()).digest() if is_of_test else contents)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("oncofed.private_files.create_whole", create_fixed)
        yield


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """One site's folder with six cases."""
    return make_site(tmp_path / "site-1")


@pytest.fixture
def two_sites(tmp_path: Path) -> dict[str, Path]:
    """Two sites of uneven size."""
    return {"east": make_site(tmp_path / "east", 7, 1), "west": make_site(tmp_path / "west", 5, 2)}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over the synthetic data that takes seconds."""
    return write_job(tmp_path / "balls")


@pytest.fixture
def spec(job: Path) -> JobSpec:
    """The same job, read."""
    from oncofed.job.spec import parse_job  # noqa: PLC0415 - takes seconds

    return parse_job(job)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process by its entry point."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["oncofed", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        status = 0
        try:
            entry.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Outcome(status, printed.out + printed.err, printed.out)

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images; skips tests without it."""
    folder = Path(os.environ.get("ONCOFED_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}; set ONCOFED_DATA to a folder with hippocampus/")
    return folder


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a parameter of bytes by its length.

    All workers need the same names, and contents may hold times.
    """
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)  # xdist's own reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group, sort and skip tests.

    Those marked ``gpu`` are skipped without one.
    """
    import torch  # noqa: PLC0415 - takes seconds

    for item in items:
        for name, (_, columns) in _TABLES.items():
            # What the summary shows; a worker's results carry it to where that is written.
            for marker in item.iter_markers(name):
                row = dict(zip(columns, marker.args, strict=False)) | {"test": item.nodeid.split("/", 1)[1]}
                item.user_properties.append((name, row | marker.kwargs))
        add_group(item)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; torch finds none"))
    items[:] = interleaved(items)


def pytest_collection_finish() -> None:
    """Collect from now on what tests leave.

    What was imported stays to the end: the collector would go through it again every few tests, and find nothing.
    """
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a table after ``make security`` and ``make wild``."""
    kind = config.getoption("markexpr")
    if kind not in _TABLES:
        return
    passed, columns = _TABLES[kind]
    rows: dict[tuple[str, ...], str] = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, row in getattr(report, "user_properties", []):
                if name == kind:
                    rows[tuple(row[column] for column in columns)] = passed if outcome == "passed" else outcome.upper()
    table = Table(columns[0], "", *columns[1:], box=SIMPLE, show_lines=True)
    for cells, outcome in sorted(rows.items()):
        table.add_row(cells[0], outcome, *cells[1:])
    text = io.StringIO()
    Console(file=text, width=150).print(table)
    terminalreporter.write(text.getvalue())
