"""How a benchmark is called, and how its figures are shown and kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from machine import machine

_BASELINES = Path(__file__).parent / "baselines"


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every such benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/baselines/")
    return parser


def hand_over(record: dict[str, Any], arguments: argparse.Namespace, table: str = "") -> None:
    """Keep figures where asked, and print them.

    Args:
        record: the figures; ``benchmark`` names them.
        arguments: what the benchmark was called with.
        table: printed unless JSON was asked for; empty where all was printed as it came.
    """
    text = json.dumps({**record, "machine": machine()}, indent=2)
    if arguments.save:
        (_BASELINES / f"{record['benchmark']}.json").write_text(text + "\n", encoding="utf-8")
    if arguments.json or table:
        print(text if arguments.json else table)
