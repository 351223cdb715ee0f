"""Every notebook of the documentation runs from its first cell to its last."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_NOTEBOOKS = sorted((_ROOT / "docs" / "notebooks").glob("*.ipynb"))
_PROGRAM = """
import sys
from pathlib import Path
from notebooks import executed, page_of
file = Path(sys.argv[1])
print(page_of(executed(file), file.name))
"""


def _page(file: Path) -> subprocess.CompletedProcess[str]:
    # In a process of its own: a kernel's client starts threads.
    path = [str(_ROOT / "docs" / "site"), *(place for place in sys.path if place)]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{_PROGRAM}", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_are_four() -> None:
    assert [file.stem for file in _NOTEBOOKS] == ["federation", "report", "strategy", "trainer"]


@pytest.mark.parametrize("file", _NOTEBOOKS, ids=lambda file: file.stem)
def test_it_is_kept_without_outputs(file: Path) -> None:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert sum(cell["cell_type"] == "code" for cell in cells) <= 10


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.parametrize("file", _NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path) -> None:
    done = _page(file)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("# ")
    assert "```text\n" in done.stdout
