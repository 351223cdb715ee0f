"""A MONAI bundle with code, as a pack.

Its configuration, its scripts, and the few lines that make its network.

The bundle's configuration defines its network, possibly by expressions and classes of its own: code, which a site
approves by its digest like any other. Its weights are not part of the pack: a job carries them, as safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from oncofed.errors import SpecError
from oncofed.models.foreign import CONFIGS, NETWORK_KEYS, config_paths, preprocessing_of, read_config
from oncofed.packs.load import use_scripts
from oncofed.packs.pack import Pack, pack_files, require_plain

_SCRIPTS = "scripts"
_CODE = '''"""The network of the MONAI bundle {name}, as its configuration defines it."""

from oncofed.packs.bundles import bundle_network
from oncofed.models import register_network


@register_network("{name}", kind="{kind}", divisor={divisor}, dimensions={dimensions})
def network(in_channels, out_channels, spatial_dims, **arguments):
    wanted = {{"in_channels": in_channels, "out_channels": out_channels, "spatial_dims": spatial_dims}}
    return bundle_network(__name__, wanted, arguments)
'''


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a MONAI bundle.

    A Python package is none.
    """
    names = {path.stem for path in config_paths(folder) if path.is_file()}
    return not names.isdisjoint(CONFIGS) and not (folder / "__init__.py").exists()


def make_bundle_pack(folder: Path, startup: Path | None) -> Pack:
    """Return a bundle as a pack.

    It holds configuration and scripts, and registers its network under the bundle's name.

    Args:
        folder: of the bundle, with ``configs`` and perhaps ``scripts``; nothing else of it is taken.
        startup: see ``make_pack``.

    Raises:
        SpecError: its configuration defines no network, or cannot be read.
    """
    name = folder.resolve().name.lower()
    paths = [*config_paths(folder), *sorted((folder / _SCRIPTS).rglob("*.py"))]
    require_plain(paths)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if any(path.startswith(f"{_SCRIPTS}/") for path in files):
        files.setdefault(f"{_SCRIPTS}/__init__.py", b"")
    definition_of(files, str(folder))
    files["__init__.py"] = _CODE.format(name=name, **_about(files, str(folder))).encode()
    return pack_files(name, files, startup, str(folder))


def definition_of(files: Mapping[str, bytes], where: str) -> tuple[dict[str, Any], str]:
    """Return a bundle's configuration and its network's key.

    Raises:
        SpecError: there is none.
    """
    for name in CONFIGS:
        config = read_config(files, name, where) or {}
        for key in NETWORK_KEYS:
            if isinstance(config.get(key), dict | str):
                return config, key
    raise SpecError(f"{where}: its configuration defines no network (found no {' or '.join(NETWORK_KEYS)})")


def input_of(pack: Pack) -> dict[str, Any]:
    """Return the input's settings as a job's ``data`` section."""
    return preprocessing_of([read_config(pack.files, name, pack.name) or {} for name in CONFIGS])


def bundle_network(package: str, wanted: Mapping[str, Any], arguments: Mapping[str, Any]) -> nn.Module:
    """Build a bundle's network, which runs its code.

    Only a loaded pack calls it.

    Args:
        package: of the pack, as it is imported.
        wanted: channels and axes that the job has; those that the definition names itself are replaced.
        arguments: further ones of the job.
    """
    pack = use_scripts(package)
    config, key = definition_of(pack.files, pack.name)
    definition = config[key]
    if isinstance(definition, dict):
        known = {name: value for name, value in wanted.items() if name in definition}
        config = {**config, key: {**definition, **known, **arguments}}
    network: nn.Module = ConfigParser(config).get_parsed_content(key)
    return network


def _about(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Return a network's kind, divisor and dimensions from metadata."""
    formats = (read_config(files, "metadata", where) or {}).get("network_data_format")
    formats = formats if isinstance(formats, dict) else {}
    output, image = _first(formats.get("outputs")), _first(formats.get("inputs"))
    shape = image.get("spatial_shape")
    sides = shape if isinstance(shape, list) and len(shape) in (2, 3) else []
    steps = [int(found[1]) for side in sides if (found := re.match(r"^\s*(\d{1,4})\s*\*\s*n", str(side)))]
    return {
        "kind": "image" if output.get("type") == "probabilities" else "dense",
        "divisor": max(steps, default=1),
        "dimensions": (len(sides),) if sides else (2, 3),
    }


def _first(tensors: Any) -> dict[str, Any]:
    found = next(iter(tensors.values()), None) if isinstance(tensors, dict) else None
    return found if isinstance(found, dict) else {}
