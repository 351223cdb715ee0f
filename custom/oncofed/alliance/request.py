"""Certificate requests of participants who create their own private key.

The key never leaves the participant. The alliance answers with a startup kit without a private key, sealed with age for
a second key in the request's folder.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Literal

import pyrage
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from nvflare.lighter.utils import generate_keys, serialize_pri_key
from pydantic import Field, ValidationError, field_validator

from oncofed.alliance.facts import KitFacts, read_facts
from oncofed.alliance.sealing import unseal
from oncofed.alliance.spec import RECIPIENT
from oncofed.errors import AllianceError
from oncofed.private_files import write_private
from oncofed.settings import StrictModel, first_problem

REQUEST_FILE = "request.json"
_KEY_FILE = "private.key"
_IDENTITY_FILE = "answer.key"
_LEAST_KEY_BITS = 2048
_LARGEST_REQUEST_BYTES = 64 << 10

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._%+@-]{0,62}$"

ApplicantKind = Literal["server", "site", "person"]


class CertificateRequest(StrictModel):
    """``request.json``, without secrets.

    It is not trusted until its sender confirms the fingerprint.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    participant: str = Field(pattern=_NAME)
    kind: ApplicantKind
    recipient: str = Field(pattern=RECIPIENT, description="age recipient that the answer is sealed for")
    csr: str = Field(max_length=16_384, description="PKCS #10, PEM: proves that the sender has the private key")

    @field_validator("csr")
    @classmethod
    def _is_valid(cls, value: str) -> str:
        csr = x509.load_pem_x509_csr(value.encode())
        key = csr.public_key()
        if not csr.is_signature_valid:
            raise ValueError("is not signed with the key that it is about")
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _LEAST_KEY_BITS:
            raise ValueError(f"expected an RSA key of {_LEAST_KEY_BITS} bits or more")
        return value

    @property
    def public_key(self) -> rsa.RSAPublicKey:
        """The public key to certify."""
        key = x509.load_pem_x509_csr(self.csr.encode()).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        return key

    @property
    def fingerprint(self) -> str:
        """SHA-256 of public key and recipient, to read out: ``AB:CD:...``."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(_public_bytes(self.public_key) + self.recipient.encode())
        return digest.finalize().hex(":").upper()


def make_request(participant: str, kind: ApplicantKind, folder: Path) -> CertificateRequest:
    """Create a private key and a request for its certificate.

    Args:
        participant: name in the alliance.
        kind: of participant.
        folder: for both; new, and only its owner can enter it.

    Raises:
        AllianceError: the folder exists, or the name is not valid.
    """
    if not re.match(_NAME, participant):
        raise AllianceError(f"{participant!r} is no name of a participant. Take the one in the alliance's list.")
    if folder.exists():
        raise AllianceError(f"{folder} exists. Name another folder with --out, or delete a request that is answered.")
    key, _ = generate_keys()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, participant)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    identity = pyrage.x25519.Identity.generate()
    request = CertificateRequest(
        schema=1,
        participant=participant,
        kind=kind,
        recipient=str(identity.to_public()),
        csr=csr.public_bytes(serialization.Encoding.PEM).decode(),
    )
    write_private(folder / _KEY_FILE, serialize_pri_key(key))
    write_private(folder / _IDENTITY_FILE, f"{identity}\n".encode())
    write_private(folder / REQUEST_FILE, (request.model_dump_json(indent=2, by_alias=True) + "\n").encode())
    return request


def read_request(file: Path) -> CertificateRequest:
    """Read a request that a participant sent.

    Raises:
        AllianceError: not a valid request, or the CSR has another name.
    """
    try:
        if file.stat().st_size > _LARGEST_REQUEST_BYTES:
            raise AllianceError(f"{file} is larger than a request. Expected a {REQUEST_FILE} that a participant sent")
        request = CertificateRequest.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise AllianceError(f"{file}: {error.strerror}. Expected a {REQUEST_FILE} that a participant sent") from None
    except ValidationError as error:
        raise AllianceError(f"{file}: {first_problem(error)}") from None
    except ValueError:
        raise AllianceError(f"{file} is no request. Expected a {REQUEST_FILE} that a participant sent") from None
    names = x509.load_pem_x509_csr(request.csr.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in names] != [request.participant]:
        raise AllianceError(f"{file}: {request.participant} asks for a certificate of another name")
    return request


def open_answer(file: Path, out: Path, request: Path) -> KitFacts:
    """Open the alliance's answer and add the private key.

    Args:
        file: the sealed kit.
        out: folder for the kit.
        request: folder of the request; it can be deleted afterwards.

    Raises:
        AllianceError: not the answer to that request.
    """
    if not (request / _IDENTITY_FILE).is_file():
        raise AllianceError(f"{request} holds no request. Expected the folder that `oncofed site request` made.")
    unseal(file, out, None, request / _IDENTITY_FILE)
    facts = read_facts(out)
    key = (request / _KEY_FILE).read_bytes()
    if not key_matches(facts.certificate(out), key):
        shutil.rmtree(out)
        raise AllianceError(f"{file} is the answer to another request than that in {request}")
    write_private(facts.certificate_file(out).with_suffix(".key"), key)
    return facts


def key_matches(certificate: x509.Certificate, private_key: bytes) -> bool:
    """Return whether a private key (PEM) belongs to a certificate."""
    return serialization.load_pem_private_key(private_key, password=None).public_key() == certificate.public_key()


def _public_bytes(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
