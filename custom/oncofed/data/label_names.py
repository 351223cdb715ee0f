"""Names of label values in ``dataset.json``.

In the formats of the Decathlon and nnU-Net, with nnU-Net's regions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncofed.errors import DataError


def named_values(labels: object, path: Path) -> dict[str, str] | None:
    """Return label value -> name; None without any.

    The Decathlon writes value -> name, nnU-Net name -> value, or name -> values of a region: voxels of any of them. A
    value that two regions share has no name of its own.

    Args:
        labels: from ``dataset.json``.
        path: of the file, for messages.

    Raises:
        DataError: regions overlap.
    """
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, Mapping):
        return None
    by_value: dict[str, list[str]] = defaultdict(list)
    regions: dict[str, list[str]] = {}
    for key, said in labels.items():
        if isinstance(said, (list, tuple)):
            regions[str(key)] = values = [str(value) for value in said]
            for value in values:
                by_value[value].append(str(key))
        elif isinstance(said, str) and not (_is_number(said) and not _is_number(key)):
            by_value[str(key)].append(said)
        else:
            by_value[str(said)].append(str(key))
    shared = [value for value, names in by_value.items() if len(names) > 1]
    if shared and not regions:
        value, names = shared[0], by_value[shared[0]]
        raise DataError(f"{path}: its labels {' and '.join(names)} have one value ({value}), expected one name a value")
    if shared:
        raise DataError(f"{path}: {_overlap(by_value, shared)}")
    return {value: names[0] for value, names in by_value.items()}


def _overlap(by_value: Mapping[str, list[str]], shared: list[str]) -> str:
    names = {name for value in shared for name in by_value[value]}
    regions = [
        f"{name} ({', '.join(value for value, those in by_value.items() if name in those)})" for name in sorted(names)
    ]
    every = [value for value in by_value if value not in {"0", "0.0"}]
    example = ",".join(f"{value}=NAME" for value in every)
    return (
        f"its labels are regions that overlap: {', '.join(regions)}. No task learns overlapping classes yet. Name "
        f"each single value instead, and let the job learn these: register the folder with --labels {example}"
    )


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
