"""A MONAI bundle as a job's model, without its code.

Its network definition is read, which may name MONAI's networks and plain values, and its weights, which are tensors.
Expressions (``$...``), scripts and other classes are code: a bundle that needs them is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.networks import nets
from torch import Tensor, nn

from oncofed.errors import SpecError
from oncofed.models.adapters import for_network
from oncofed.models.weights import Weights

# Folder of bundles that a job names by a relative path.
FOLDER_VARIABLE = "ONCOFED_BUNDLES"

# First characters of strings that MONAI's bundle parser evaluates or replaces.
EXPRESSIONS = frozenset("$@%")

# Configurations of a bundle that define its network, and under which keys.
CONFIGS = ("inference", "train", "evaluate")
NETWORK_KEYS = ("network_def", "network")
# Key of the voxel size in mm, where a transform has it in other units.
VOXEL_SIZE = "voxel_size"
_CONFIG_FOLDER, _CONFIG_KINDS = "configs", (".json", ".yaml", ".yml")
_NETWORKS = "monai.networks.nets"
# A network that shares fewer of its tensors with the bundle's weights is another network.
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Bundle:
    """The definition of a bundle.

    Attributes:
        folder: of the bundle.
        network: its definition: ``_target_`` and plain arguments.
        preprocessing: spacing, orientation, window and patch of its input, as a job's section ``data`` writes them;
            settings that it lacks, or that no job can have, are missing.
        digest: SHA-256 of definition and weights.
    """

    folder: Path
    network: dict[str, Any]
    preprocessing: dict[str, Any]
    digest: str


def read_bundle(path: str) -> Bundle:
    """Read a bundle's definition.

    Args:
        path: of its folder; a relative one starts at the folder that ``ONCOFED_BUNDLES`` names, else here.

    Raises:
        SpecError: there is no bundle, or it needs code.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE, "."), Path(path).expanduser())
    return _read(folder, _stamp(folder))


def load_bundle_weights(bundle: Bundle, network: nn.Module) -> None:
    """Load a bundle's weights, if any; see ``fitting_weights``."""
    stored = bundle_weights(bundle.folder)
    if stored is not None:
        network.load_state_dict(fitting_weights(stored, network.state_dict(), bundle.folder), strict=False)


def bundle_weights(folder: Path) -> Weights | None:
    """Return a bundle's weights; None if it has none.

    Raises:
        SpecError: they are broken, or no tensors.
    """
    path = _weights(folder)
    if path is None:
        return None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        stored = loaded.get("state_dict", loaded.get("model", loaded))
        return {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    except Exception as error:  # noqa: BLE001 - a broken or forbidden pickle may raise anything
        raise SpecError(f"{path}: no weights that can be read as tensors alone ({type(error).__name__})") from None


def fitting_weights(stored: Weights, own: Weights, where: Path) -> Weights:
    """Return the weights that fit a network.

    An output for other classes starts from its initial weights. Adapters are taken, or added to their layers; see
    ``for_network``.

    Args:
        stored: by name.
        own: the network's.
        where: they come from, for messages.

    Raises:
        SpecError: fewer than half of the network's fit.
    """
    stored = for_network(stored, own)
    fitting = {n: v for n, v in stored.items() if n in own and own[n].shape == v.shape}
    if len(fitting) < _LEAST_SHARE * len(own):
        raise SpecError(
            f"{where}: {len(fitting)} of the network's {len(own)} tensors fit: these are another network's weights"
        )
    return fitting


@cache
def _read(folder: Path, stamp: str) -> Bundle:
    files = config_files(folder)
    configs = [config for name in CONFIGS if (config := read_config(files, name, str(folder))) is not None]
    if not configs:
        raise SpecError(f"{folder}: no MONAI bundle (found no configs/inference.json or train.json)")
    for config in configs:
        found = next((config[key] for key in NETWORK_KEYS if isinstance(config.get(key), dict)), None)
        if found and "_target_" in found:
            target = _plain(found["_target_"], config, folder)
            rest = {key: value for key, value in found.items() if key not in {"_target_", "_requires_"}}
            network = {"_target_": target, **_plain(rest, config, folder)}
            break
    else:
        raise SpecError(f"{folder}: its configuration has no network_def with a _target_")
    name = str(network["_target_"]).removeprefix(f"{_NETWORKS}.")
    if not hasattr(nets, name):
        raise SpecError(
            f"{folder}: its network is {network['_target_']}, expected one of {_NETWORKS}: other classes are code"
        )
    digest = hashlib.sha256(json.dumps(network, sort_keys=True).encode())
    weights = _weights(folder)
    if weights:
        digest.update(weights.read_bytes())
    return Bundle(folder, {**network, "_target_": name}, preprocessing_of(configs), digest.hexdigest())


def _stamp(folder: Path) -> str:
    """Return a cache key that changes when the bundle does."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)


def config_files(folder: Path) -> dict[str, bytes]:
    """Return a bundle's configuration files by path.

    None of them if it is no bundle.
    """
    paths = (path for path in config_paths(folder) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def config_paths(folder: Path) -> list[Path]:
    """Return the possible paths of a bundle's configuration files."""
    return sorted(path for path in (folder / _CONFIG_FOLDER).glob("*") if path.suffix in _CONFIG_KINDS)


def read_config(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any] | None:
    """Return a bundle's configuration by name, or None.

    Args:
        files: of the bundle, by path.
        name: such as "inference".
        where: the files come from, for messages.

    Raises:
        SpecError: it cannot be read.
    """
    for kind in _CONFIG_KINDS:
        path = f"{_CONFIG_FOLDER}/{name}{kind}"
        if path in files:
            try:
                values = yaml.safe_load(files[path].decode("utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise SpecError(f"{where}/{path}: cannot be read ({type(error).__name__})") from None
            return values if isinstance(values, dict) else None
    return None


def _weights(folder: Path) -> Path | None:
    path = folder / "models" / "model.pt"
    return path if path.is_file() else None


def _plain(value: Any, config: dict[str, Any], folder: Path) -> Any:
    """Resolve references to plain values of the same file."""
    if isinstance(value, dict):
        return {str(key): _plain_item(str(key), item, config, folder) for key, item in value.items() if key != "_desc_"}
    if isinstance(value, list):
        return [_plain(item, config, folder) for item in value]
    if isinstance(value, str) and value.startswith("@") and value[1:] in config:
        return _plain(config[value[1:]], config, folder)
    if isinstance(value, str) and value[:1] in EXPRESSIONS:
        raise SpecError(
            f"{folder}: its network needs the expression {value!r}: expressions are code, and no bundle's code runs"
        )
    return value


def _plain_item(key: str, value: Any, config: dict[str, Any], folder: Path) -> Any:
    if key.startswith("_"):
        raise SpecError(f"{folder}: an argument of its network has {key}: other classes are code, and no bundle's runs")
    return _plain(value, config, folder)


def preprocessing_of(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the input's settings as a job's ``data`` section.

    See ``Bundle``.
    """
    found: dict[str, Any] = {}
    for step in _steps(configs):
        name = str(step.get("_target_", "")).rpartition(".")[2]
        if name == "Spacingd" and isinstance(step.get("pixdim"), list):
            sizes = [config[VOXEL_SIZE] for config in configs if isinstance(config.get(VOXEL_SIZE), list)]
            found["spacing"] = sizes[0] if sizes else step["pixdim"]
        elif name == "Orientationd":
            found["orientation"] = step.get("axcodes")
        elif name == "ScaleIntensityRanged" and (step.get("b_min"), step.get("b_max")) == (0, 1):
            found["window"] = [step.get("a_min"), step.get("a_max")]
    sides = [config["inferer"].get("roi_size") for config in configs if isinstance(config.get("inferer"), dict)]
    if sides and isinstance(sides[0], list):
        found["patch"] = sides[0]
    return found


def _steps(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for config in configs:
        for key in ("preprocessing", "validate#preprocessing", "deterministic_transforms"):
            section = config.get(key)
            steps = section.get("transforms", section) if isinstance(section, dict) else section
            if isinstance(steps, list):
                return [step for step in steps if isinstance(step, dict)]
    return []
