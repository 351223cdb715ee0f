"""An alliance's root key, encrypted at rest.

It signs every certificate.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.utils import generate_keys

from oncofed.alliance.passwords import lock, unlock
from oncofed.errors import AllianceError
from oncofed.private_files import write_private
from oncofed.signing import PADDING

_CERTIFICATE_FILE = "root.pem"
_KEY_FILE = "root.key.age"
_VALID_DAYS = 3650
# A certificate that expires within this many days is shown as a warning.
EXPIRES_SOON_DAYS = 30
# A site whose clock is slow would refuse a certificate that is valid only from now on.
LARGEST_CLOCK_ERROR = timedelta(days=1)


class Authority:
    """Signs certificates and kits.

    Args:
        certificate: of the root.
        key: of the root.
    """

    def __init__(self, certificate: x509.Certificate, key: rsa.RSAPrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    @classmethod
    def new(cls, name: str) -> Authority:
        """Return the authority of a new alliance.

        Only ``save`` stores its key.
        """
        key, public = generate_keys()
        certificate = CertBuilder._generate_cert(
            name,
            None,
            name,
            key,
            public,
            valid_days=_VALID_DAYS,
            ca=True,
            not_valid_before=datetime.now(timezone.utc) - LARGEST_CLOCK_ERROR,
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, folder: Path, password: str) -> Authority:
        """Read a saved authority.

        Raises:
            AllianceError: the password is wrong, or the file was changed.
        """
        pem = unlock((folder / _KEY_FILE).read_bytes(), password, str(folder / _KEY_FILE))
        key = serialization.load_pem_private_key(pem, password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return cls(x509.load_pem_x509_certificate((folder / _CERTIFICATE_FILE).read_bytes()), key)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether a folder holds an authority."""
        return (folder / _KEY_FILE).exists()

    def save(self, folder: Path, password: str) -> None:
        """Write the certificate and the encrypted key.

        Only the password opens the key (age, scrypt).

        Raises:
            AllianceError: the folder holds an authority already.
        """
        if self.is_in(folder):
            raise AllianceError(f"{folder / _KEY_FILE} exists: an alliance's root is never written over")
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(folder / _CERTIFICATE_FILE, self.certificate_pem)
        write_private(folder / _KEY_FILE, lock(pem, password))

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate (PEM), as in every kit."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, data: bytes) -> bytes:
        """Sign with the root key (RSA-PSS, SHA-256)."""
        return self.key.sign(data, PADDING, hashes.SHA256())


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 fingerprint, to read out: ``AB:CD:...``."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def common_name(certificate: x509.Certificate) -> str:
    """Return a certificate's common name."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
