"""Keys of sites by certificates, with RSA as in a kit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from oncofed.privacy.secure_aggregation import KeyAdvertisement, Participant, ProtocolError, Rules
from oncofed.privacy.secure_aggregation.certificates import CertifiedSites
from oncofed.signing import PADDING, SITE_ROLE
from secure_sums import JOB, PLAN

BEGINS = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclasses.dataclass
class Kit:
    """A participant's key and certificate."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, data: bytes) -> bytes:
        assert isinstance(self.key, rsa.RSAPrivateKey)
        return self.key.sign(data, PADDING, hashes.SHA256())


def certified(
    name: str,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    issuer: Kit | None = None,
    roles: Sequence[str] = (SITE_ROLE,),
) -> Kit:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            *(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role) for role in roles),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGINS)
        .not_valid_after(BEGINS + timedelta(days=100))
    )
    return Kit(key, builder.sign(issuer.key if issuer else key, hashes.SHA256()))


@pytest.fixture(scope="module")
def keys() -> list[rsa.RSAPrivateKey]:
    return [rsa.generate_private_key(65537, 2048) for _ in range(3)]


@pytest.fixture(scope="module")
def root(keys: list[rsa.RSAPrivateKey]) -> Kit:
    return certified("alliance", keys[0])


@pytest.fixture(scope="module")
def east(root: Kit, keys: list[rsa.RSAPrivateKey]) -> Kit:
    return certified("east", keys[1], root)


def advertised(kit: Kit, site: str = "east", verify: CertifiedSites | None = None) -> KeyAdvertisement:
    known = verify or CertifiedSites(kit.certificate)
    return Participant(JOB, PLAN, site, kit.sign, known, Rules(), certificates=kit.pem).advertise()


def test_a_site_of_the_alliance(root: Kit, east: Kit) -> None:
    advertisement = advertised(east)
    key = CertifiedSites(root.certificate, sites=["east"], now=BEGINS + timedelta(days=1))(advertisement)
    assert key.is_signed(advertisement.signed_part(), advertisement.signature)
    assert not key.is_signed(advertisement.signed_part() + b"x", advertisement.signature)
    assert key.fingerprint == east.certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    chain = dataclasses.replace(advertisement, certificates=east.pem + root.pem)
    assert CertifiedSites(root.certificate)(chain).fingerprint == key.fingerprint


@pytest.mark.attack("a key that another root certifies", "server", "site's refusal: another root")
def test_refused_certificates(root: Kit, east: Kit, keys: list[rsa.RSAPrivateKey]) -> None:
    evil = certified("alliance", keys[2])  # the same name
    elliptic = certified("east", ec.generate_private_key(ec.SECP256R1()), root)
    own = advertised(east)
    accept = CertifiedSites(root.certificate)
    for verify, advertisement, rule in (
        (accept, advertised(certified("east", keys[1], evil)), "another root"),
        (accept, advertised(certified("east", keys[1])), "another root"),
        (accept, dataclasses.replace(own, certificates=b"PEM"), "certificate"),
        (accept, dataclasses.replace(own, certificates=root.pem + east.pem), "another name"),
        (accept, dataclasses.replace(own, certificates=elliptic.pem), "certificate"),
        (accept, advertised(east, "west"), "another name"),
        (CertifiedSites(root.certificate, {east.certificate.serial_number}), own, "revoked site"),
        (CertifiedSites(root.certificate, revoked_names={"EAST"}), own, "revoked site"),
        (CertifiedSites(root.certificate, sites={"west"}), own, "another job"),
        (accept, advertised(certified("east", keys[1], root, roles=())), "no site"),
        (accept, advertised(certified("east", keys[1], root, roles=("lead",))), "no site"),
        (accept, advertised(certified("east", keys[1], root, roles=("lead", SITE_ROLE))), "no site"),
        (CertifiedSites(root.certificate, now=BEGINS - timedelta(days=1)), own, "expired"),
        (CertifiedSites(root.certificate, now=BEGINS + timedelta(days=101)), own, "expired"),
    ):
        with pytest.raises(ProtocolError) as refused:
            verify(advertisement)
        assert refused.value.rule == rule


def test_participants_with_certificates(root: Kit, east: Kit, keys: list[rsa.RSAPrivateKey]) -> None:
    """A revoked peer, and a signature by another key than the certificate's."""
    west = certified("west", keys[2], root)
    accept = CertifiedSites(root.certificate)
    site = Participant(JOB, PLAN, "east", east.sign, accept, Rules(), certificates=east.pem)
    peer = advertised(west, "west")
    site.learn_peers([site.advertise(), peer])
    stolen = Participant(JOB, PLAN, "west", east.sign, accept, Rules(), certificates=west.pem).advertise()
    with pytest.raises(ProtocolError) as refused:
        site.learn_peers([site.advertise(), stolen])
    assert refused.value.rule == "signature"
    strict = CertifiedSites(root.certificate, {west.certificate.serial_number})
    site = Participant(JOB, PLAN, "east", east.sign, strict, Rules(), certificates=east.pem)
    with pytest.raises(ProtocolError) as refused:
        site.learn_peers([site.advertise(), peer])
    assert refused.value.rule == "revoked site"
