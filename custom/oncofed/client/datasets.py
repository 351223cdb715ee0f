"""Folders of a site's datasets.

A job only names its dataset; only the site knows the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from oncofed.errors import DataError

DATASETS_FILE = "datasets.json"


def datasets_entry(site: str, folders: Mapping[str, Path]) -> bytes:
    """Return a site's ``datasets.json``."""
    entry = {site: {name: str(folder.resolve()) for name, folder in folders.items()}}
    return (json.dumps(entry, indent=2) + "\n").encode()


def dataset_folder(config: Path, site: str, dataset: str) -> Path:
    """Return the folder of a dataset.

    Args:
        config: the site's ``datasets.json``: ``{SITE: {DATASET: FOLDER}}``.
        site: name of the site.
        dataset: name of the dataset.

    Raises:
        DataError: it is not registered there.
    """
    try:
        registered = json.loads(config.read_text(encoding="utf-8"))[site]
    except FileNotFoundError:
        raise DataError(f"{config} is missing. Expected {{SITE: {{DATASET: FOLDER}}}}.") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{config} has no entry for {site}. Expected {{SITE: {{DATASET: FOLDER}}}}.") from None
    if dataset not in registered:
        raise DataError(f"{config}: no dataset {dataset!r}, found {sorted(registered)}. Register its folder there.")
    return Path(registered[dataset])
