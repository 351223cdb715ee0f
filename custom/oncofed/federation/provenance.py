"""Where a model comes from: ``provenance.json`` beside it, signed with the server's key."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from safetensors import SafetensorError
from safetensors.torch import load_file

import oncofed
from oncofed.errors import SpecError
from oncofed.federation.gate import PADDING, is_signed_by
from oncofed.models.weights import Weights, digest_of

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
    provenance = {"schema": SCHEMA, "model": digest_of(model), "versions": versions, **facts}
    signed: dict[str, Any] = {"provenance": provenance, "certificate": None, "signature": None}
    key_file, certificate_file = startup / "server.key", startup / "server.crt"
    if key_file.is_file() and certificate_file.is_file():
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        signature = key.sign(_signed_part(provenance), PADDING, hashes.SHA256())
        signed |= {
            "certificate": certificate_file.read_text(encoding="utf-8"),
            "signature": base64.b64encode(signature).decode(),
        }
    path.write_text(json.dumps(signed, indent=2) + "\n", encoding="utf-8")


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


def problems_of(signed: Mapping[str, Any], model: Path, root: x509.Certificate) -> list[str]:
    """Return why a model is not what its provenance says; empty where it is.

    Args:
        signed: the file's content.
        model: weights as safetensors.
        root: certificate of the alliance, from one's own kit.
    """
    problems = []
    try:
        if digest_of(load_file(model)) != signed["provenance"]["model"]:
            problems.append("the weights are not those that it was written for")
    except (OSError, SafetensorError) as error:
        problems.append(f"the weights cannot be read ({type(error).__name__})")
    if not signed.get("signature"):
        return [*problems, "it is not signed: the model comes from a simulation"]
    try:
        certificate = x509.load_pem_x509_certificate(signed["certificate"].encode())
        signature = base64.b64decode(signed["signature"])
    except (ValueError, AttributeError, TypeError):
        return [*problems, "its certificate or signature is broken"]
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        problems.append("its certificate is not of this alliance")
    if not is_signed_by(certificate, _signed_part(signed["provenance"]), signature):
        problems.append("it was changed after the server signed it")
    return problems


def _signed_part(provenance: Mapping[str, Any]) -> bytes:
    return json.dumps(provenance, sort_keys=True).encode()
