"""Names of label values in ``dataset.json``.

In the formats of the Decathlon and nnU-Net, with nnU-Net's regions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncofed.errors import DataError

# Name of the label of voxels that nobody labelled; a dataset need not have it.
IGNORED = "ignore"
# Between the names of regions that share a label value.
OVERLAP = " + "


def name_key(name: str) -> str:
    """Return a name for comparison, without case and separators."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def named_values(labels: object, path: Path) -> dict[str, str] | None:
    """Return label value -> name; None without any.

    The Decathlon writes value -> name, nnU-Net name -> value, or name -> values of a region: voxels of any of them. A
    value that several regions share has the names of all, joined (``OVERLAP``).

    Args:
        labels: from ``dataset.json``.
        path: of the file, for messages.

    Raises:
        DataError: two names have one value, and no region does.
    """
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, Mapping):
        return None
    by_value: dict[str, list[str]] = defaultdict(list)
    regions = False
    for key, said in labels.items():
        if isinstance(said, (list, tuple)):
            regions = True
            for value in map(str, said):
                by_value[value].append(str(key))
        elif isinstance(said, str) and not (_is_number(said) and not _is_number(key)):
            by_value[str(key)].append(said)
        else:
            by_value[str(said)].append(str(key))
    shared = [value for value, names in by_value.items() if len(names) > 1]
    if shared and not regions:
        value, names = shared[0], by_value[shared[0]]
        raise DataError(f"{path}: its labels {' and '.join(names)} have one value ({value}), expected one name a value")
    return {value: OVERLAP.join(names) for value, names in by_value.items()}


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
