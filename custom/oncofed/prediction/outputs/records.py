"""Records of cases as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def json_text(record: Mapping[str, Any]) -> str:
    """Return a record as an indented JSON file's text."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
