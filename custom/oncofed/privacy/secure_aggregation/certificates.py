"""Keys of sites by the alliance's certificates."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.messages import KeyAdvertisement
from oncofed.privacy.secure_aggregation.rules import VerifyKey
from oncofed.signing import is_signed_by


class CertifiedSites:
    """Accepts sites whose certificate the alliance's root issued.

    An instance is a ``Verify``. It has no clock: expiry is checked against the time that it is given. The root also
    certifies people and the server, who must not count as sites of a sum. Names of people are e-mail addresses, those
    of sites never are; the server's name has to be given.

    Args:
        root: certificate of the alliance, from the site's own kit: never one that a server sent.
        revoked: serial numbers of revoked certificates.
        revoked_names: of sites, whatever their certificates.
        not_sites: names that the root certifies for others, above all the server's.
        sites: names of the job's sites; None: any.
        now: aware time at which a certificate must be valid; None: its dates are not checked.
    """

    def __init__(
        self,
        root: x509.Certificate,
        revoked: Collection[int] = (),
        *,
        revoked_names: Collection[str] = (),
        not_sites: Collection[str] = (),
        sites: Collection[str] | None = None,
        now: datetime | None = None,
    ) -> None:
        self._root, self._revoked = root, frozenset(revoked)
        self._revoked_names = frozenset(name.lower() for name in revoked_names)
        self._not_sites = frozenset(not_sites)
        self._sites = None if sites is None else frozenset(sites)
        self._now = now

    def __call__(self, advertisement: KeyAdvertisement) -> VerifyKey:
        """Return the key of the site that advertises.

        Raises:
            ProtocolError: its certificate is broken, of another root, revoked, expired, of another name or no site's.
        """
        site = advertisement.site
        certificate = self._issued(site, advertisement.certificates)
        if certificate.serial_number in self._revoked or site.lower() in self._revoked_names:
            raise ProtocolError("revoked site", f"the certificate of {site} was revoked")
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if [name.value for name in names] != [site]:
            raise ProtocolError("another name", f"the certificate that {site} shows is not of this name")
        if "@" in site or site in self._not_sites:
            raise ProtocolError("no site", f"{site} is certified as a person or the server, not as a site")
        if self._sites is not None and site not in self._sites:
            raise ProtocolError("another job", f"{site} is no site of this job")
        if self._now is not None and not (
            certificate.not_valid_before_utc <= self._now <= certificate.not_valid_after_utc
        ):
            raise ProtocolError("expired", f"the certificate of {site} is not valid at this time")
        fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        return VerifyKey(fingerprint, lambda data, signature: is_signed_by(certificate, data, signature))

    def _issued(self, site: str, chain: bytes) -> x509.Certificate:
        """Return a chain's first certificate, if the root issued it.

        An alliance's root issues every certificate itself: others of the chain are not looked at.
        """
        try:
            certificate = x509.load_pem_x509_certificates(chain)[0]
        except (ValueError, IndexError):
            raise ProtocolError("certificate", f"the certificate of {site} is broken, expected PEM") from None
        try:
            certificate.verify_directly_issued_by(self._root)
        except (ValueError, TypeError, InvalidSignature):
            raise ProtocolError("another root", f"the certificate of {site} is not of this alliance") from None
        if not isinstance(certificate.public_key(), rsa.RSAPublicKey):
            raise ProtocolError("certificate", f"the certificate of {site} has no RSA key")
        return certificate
