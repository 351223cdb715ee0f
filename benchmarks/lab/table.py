"""Writes latest figures and GPU claims into ``benchmarks/README.md``."""

from __future__ import annotations

from pathlib import Path

from gpu_checks.table import write
from harness.results import read_runs
from harness.tables import markdown

_FOLDER = Path(__file__).parents[1]
README = _FOLDER / "README.md"
_BEGIN, _END = "<!-- figures: written by `make bench-table` -->\n", "<!-- end of figures -->"


def with_figures(text: str) -> str:
    """Return the README's text with the present figures."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{markdown(read_runs(_FOLDER / 'results'))}\n\n{_END}{after}"


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
    write()
