"""The weights that a site has at hand."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from oncofed.atomic import flush_to_disk
from oncofed.errors import TrainingError
from oncofed.models.encoders.entry import EncoderEntry
from oncofed.models.encoders.weights import LoadedEncoder

FOLDER_VARIABLE = "ONCOFED_ENCODERS"
_DIGEST = "digest"


def encoders_folder() -> Path:
    """Return the folder of weights.

    ``ONCOFED_ENCODERS``, else ``oncofed/encoders`` among the user's data (XDG Base Directory Specification).
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "oncofed" / "encoders"


def weights_at_hand(entry: EncoderEntry) -> Path | None:
    """Return the file of an encoder's weights; None if there is none."""
    path = _path(entry)
    return path if path.is_file() else None


def kept_digest(entry: EncoderEntry) -> str | None:
    """Return the digest noted with an encoder's weights; None if there are none.

    Not computed again: whoever uses the weights does that.
    """
    path = weights_at_hand(entry)
    if path is None:
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(_DIGEST)
    except (SafetensorError, OSError):
        return None


def require_weights(entry: EncoderEntry) -> Path:
    """Return the file of an encoder's weights.

    Raises:
        TrainingError: it is not at hand; says where to get it.
    """
    path = weights_at_hand(entry)
    if path is None:
        gated = ", whose maker hands them out on request" if entry.gated else ""
        raise TrainingError(
            f"the weights of {entry.name} are not at hand here. Get them from {entry.source}{gated} (licence: "
            f"{entry.licence}), then: oncofed data encoders add {entry.name} FILE; or name a file: task.encoder.weights"
        )
    return path


def keep_weights(entry: EncoderEntry, loaded: LoadedEncoder) -> Path:
    """Write an encoder's weights into the folder, as safetensors that their owner alone can read.

    Returns:
        The file, which replaces an earlier one.
    """
    path = _path(entry)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    part = Path(name)
    try:
        tensors = {key: value.contiguous() for key, value in loaded.weights.items()}
        save_file(tensors, part, {"encoder": entry.name, _DIGEST: loaded.digest})
        part.chmod(0o600)
        flush_to_disk(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _path(entry: EncoderEntry) -> Path:
    return encoders_folder() / f"{entry.weights_of or entry.name}.safetensors"
