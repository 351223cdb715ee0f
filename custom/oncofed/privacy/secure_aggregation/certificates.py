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
from oncofed.signing import is_of_site, is_signed_by

# What a certificate without a site's role is, and what to do.
NOT_A_SITE = (
    "It is the server, a relay or a person; or a site whose kit an older release made, which takes part in secure "
    "aggregation once it has a new one: oncofed alliance renew, then oncofed site renew"
)


class CertifiedSites:
    """Accepts sites whose certificate the alliance's root issued.

    An instance is a ``Verify``. It has no clock: expiry is checked against the time that it is given. The root also
    certifies people, relays and the server, who must not count as sites of a sum: a site's certificate says that it is
    one.

    Args:
        root: certificate of the alliance, from the site's own kit: never one that a server sent.
        revoked: serial numbers of revoked certificates.
        revoked_names: of sites, whatever their certificates.
        sites: names of the job's sites; None: any.
        now: aware time at which a certificate must be valid; None: its dates are not checked.
    """

    def __init__(
        self,
        root: x509.Certificate,
        revoked: Collection[int] = (),
        *,
        revoked_names: Collection[str] = (),
        sites: Collection[str] | None = None,
        now: datetime | None = None,
    ) -> None:
        self._root, self._revoked = root, frozenset(revoked)
        self._revoked_names = frozenset(name.lower() for name in revoked_names)
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
        if not is_of_site(certificate):
            raise ProtocolError("no site", f"{site} is certified, but not as a site. {NOT_A_SITE}")
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
