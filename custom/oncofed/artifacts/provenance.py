"""A model's origin: ``provenance.json``, signed with the server's key."""

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
    """Write a model's provenance.

    Args:
        path: of the file.
        model: the weights.
        facts: of the run: job, person that submitted it, sites, rounds, seeds.
        startup: folder with the server's key and certificate; without them, in a simulation, nothing is signed.
    """
    versions = {"oncofed": oncofed.__version__, **{name: version(name) for name in _PACKAGES}}
    provenance = {"schema": SCHEMA, "model": _digest(model), "versions": versions, **facts}
    signature = signed(_signed_part(provenance), startup / "server.key", startup / "server.crt")
    path.write_text(json.dumps({"provenance": provenance, **signature}, indent=2) + "\n", encoding="utf-8")


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the content of a provenance file, unverified; see ``problems_of``.

    Raises:
        SpecError: it cannot be read as one.
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


def problems_of(provenance: Mapping[str, Any], model: Path, root: x509.Certificate, server: str) -> list[str]:
    """Return the reasons not to trust a provenance.

    Empty if it can be trusted.

    Args:
        provenance: the file's content.
        model: weights as safetensors.
        root: certificate of the alliance, from one's own kit.
        server: name of its server, from the same kit: only it can sign for a model.
    """
    problems = []
    try:
        if _digest(load_file(model)) != provenance["provenance"]["model"]:
            problems.append("the weights are not those that it was written for")
    except (OSError, SafetensorError) as error:
        problems.append(f"the weights cannot be read ({type(error).__name__})")
    if not provenance.get("signature"):
        return [*problems, "it is not signed: the model comes from a simulation"]
    if signer(provenance) not in (None, server):
        problems.append(f"it is signed by {signer(provenance)}, expected the server {server}")
    return [*problems, *signature_problems(provenance, _signed_part(provenance["provenance"]), root)]


def _digest(model: Weights) -> str:
    """Return a model's digest.

    It follows a standard (FIPS 180-4): it outlives the run, and others may have to check it.
    """
    return digest_of(model, hashlib.sha256).hexdigest()


def _signed_part(provenance: Mapping[str, Any]) -> bytes:
    return json.dumps(provenance, sort_keys=True).encode()
