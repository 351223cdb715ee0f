"""Where a model comes from: ``provenance.json`` beside it, signed with the server's key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from safetensors import SafetensorError
from safetensors.torch import load_file

import oncofed
from oncofed.errors import SpecError
from oncofed.models.weights import Weights, digest_of
from oncofed.signing import signature_problems, signed, signer

PROVENANCE_FILE = "provenance.json"
SCHEMA = 1
_PACKAGES = ("nvflare", "monai", "torch", "numpy")


def write_provenance(path: Path, model: Weights, facts: Mapping[str, Any], startup: Path) -> None:
    """Write where a model comes from.

    Args:
        path: of the file.
        model: the weights.
        facts: of the run: job, who submitted it, sites, rounds, seeds.
        startup: folder with the server's key and certificate; without them, in a simulation, nothing is signed.
    """
    versions = {"oncofed": oncofed.__version__, **{name: version(name) for name in _PACKAGES}}
    provenance = {"schema": SCHEMA, "model": _digest(model), "versions": versions, **facts}
    said = signed(_signed_part(provenance), startup / "server.key", startup / "server.crt")
    written = {"provenance": provenance, **said}
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what a file says of a model; whether it is true is told by ``problems_of``.

    Raises:
        SpecError: it is no such file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["provenance"]["schema"] != SCHEMA:
            raise KeyError("schema")
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}. Expected the {PROVENANCE_FILE} of a run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path}: no provenance that this version knows ({type(error).__name__})") from None
    return dict(values)


def problems_of(said: Mapping[str, Any], model: Path, root: x509.Certificate, server: str) -> list[str]:
    """Return why a model is not what its provenance says; empty where it is.

    Args:
        said: the file's content.
        model: weights as safetensors.
        root: certificate of the alliance, from one's own kit.
        server: its server's name, from the same kit: nobody else vouches for a model.
    """
    problems = []
    try:
        if _digest(load_file(model)) != said["provenance"]["model"]:
            problems.append("the weights are not those that it was written for")
    except (OSError, SafetensorError) as error:
        problems.append(f"the weights cannot be read ({type(error).__name__})")
    if not said.get("signature"):
        return [*problems, "it is not signed: the model comes from a simulation"]
    if signer(said) not in (None, server):
        problems.append(f"it is signed by {signer(said)}, expected the server {server}")
    return [*problems, *signature_problems(said, _signed_part(said["provenance"]), root)]


def _digest(model: Weights) -> str:
    """Return a model's digest, by a standard (FIPS 180-4): it outlives the run, and others may have to follow it."""
    return digest_of(model, hashlib.sha256).hexdigest()


def _signed_part(provenance: Mapping[str, Any]) -> bytes:
    return json.dumps(provenance, sort_keys=True).encode()
