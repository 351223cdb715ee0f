"""Signatures by an alliance's participants, verified against its root certificate."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
# The role in a site's certificate. A root issues those of relays and the server without any.
SITE_ROLE = "site"


def is_signed_by(certificate: x509.Certificate, data: bytes, signature: bytes) -> bool:
    """Verify a signature by a certificate's key (RSA-PSS, SHA-256)."""
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(signature, data, PADDING, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def is_of_site(certificate: x509.Certificate) -> bool:
    """Return whether a certificate says that it is a site's.

    It has its role where FLARE writes a person's: the subject's ``unstructuredName`` (PKCS #9).
    """
    roles = certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
    return [role.value for role in roles] == [SITE_ROLE]


def sign_with(key_file: Path) -> Callable[[bytes], bytes]:
    """Return a function that signs by the key in a file (RSA-PSS, SHA-256).

    The key is read once: its check takes a hundred times as long as a signature.
    """
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return lambda data: key.sign(data, PADDING, hashes.SHA256())


def signature_by(key_file: Path, data: bytes) -> bytes:
    """Return a signature by the key in a file (RSA-PSS, SHA-256)."""
    return sign_with(key_file)(data)


def signed(data: bytes, key_file: Path, certificate_file: Path) -> dict[str, str | None]:
    """Return data's ``certificate`` and ``signature`` for a JSON file.

    Both are None without a key.
    """
    if not key_file.is_file() or not certificate_file.is_file():
        return {"certificate": None, "signature": None}
    signature = signature_by(key_file, data)
    return {
        "certificate": certificate_file.read_text(encoding="utf-8"),
        "signature": base64.b64encode(signature).decode(),
    }


def signature_problems(signature: Mapping[str, Any], data: bytes, root: x509.Certificate) -> list[str]:
    """Return why a participant's signature is not valid.

    Empty if it is.

    Args:
        signature: the result of ``signed``.
        data: the signed data.
        root: certificate of the alliance, from the local kit.
    """
    problems = []
    try:
        certificate = x509.load_pem_x509_certificate(signature["certificate"].encode())
        signed_digest = base64.b64decode(signature["signature"])
    except (ValueError, AttributeError, TypeError, KeyError):
        return ["its certificate or signature is broken"]
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        problems.append("its certificate is not of this alliance")
    if not is_signed_by(certificate, data, signed_digest):
        problems.append("it was changed after it was signed")
    return problems


def signer(signature: Mapping[str, Any]) -> str | None:
    """Return the name in a signature's certificate; None without one."""
    try:
        subject = x509.load_pem_x509_certificate(signature["certificate"].encode()).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        return None
