"""An archive that is reached by TLS alone."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from commands import Outcome
from dicoms import make_series, volume
from orthancs import Orthanc, TokenGate, why_no_orthanc

pytest.importorskip("dicomweb_client", reason="needs dicomweb-client: pip install 'oncofed[hospital]'")
pytest.importorskip("pynetdicom", reason="needs pynetdicom: pip install 'oncofed[hospital]'")
pytestmark = [
    pytest.mark.skipif(bool(why_no_orthanc()), reason=why_no_orthanc() or "there is one"),
    pytest.mark.xdist_group("orthanc"),
]


def make_certificate(folder: Path) -> None:
    """Write ``ca.pem``, ``key.pem`` and both as ``both.pem``, for 127.0.0.1."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)
    for file, content in (("ca.pem", certificate), ("key.pem", private), ("both.pem", certificate + private)):
        (folder / file).write_bytes(content)
        (folder / file).chmod(0o600)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    make_certificate(tmp_path)
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(tmp_path / "ca.pem"),
        "DicomTlsPrivateKey": str(tmp_path / "key.pem"),
        "DicomTlsTrustedCertificates": str(tmp_path / "ca.pem"),
    }
    with Orthanc(tmp_path / "orthanc", settings) as server:
        yield server


def test_images_come_encrypted_from_a_trusted_archive_alone(
    orthanc: Orthanc, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    orthanc.add(make_series(tmp_path / "in", patient="MRN-1", modality="CT"))
    cohort, pacs = tmp_path / "cohort.csv", tmp_path / "pacs.yaml"
    cohort.write_text("patient_id\nMRN-1\n", encoding="utf-8")
    (tmp_path / "token").write_text("secret\n", encoding="utf-8")
    (tmp_path / "token").chmod(0o600)
    dimse = orthanc.pacs("get")["dimse"]
    tls = {"ca": "ca.pem", "certificate": "ca.pem", "key": "key.pem"}
    with TokenGate(orthanc, "secret", tls=tmp_path / "both.pem") as gate:
        web = {"url": gate.url, "token_file": "token"}
        for number, (settings, status) in enumerate(
            [
                ({"dicomweb": {**web, "ca": "ca.pem"}}, 0),
                ({"dicomweb": web}, 1),
                ({"dimse": {**dimse, "tls": tls}}, 0),
                ({"dimse": dimse}, 1),
            ]
        ):
            pacs.write_text(yaml.safe_dump({**settings, "patience_minutes": 0}), encoding="utf-8")
            out = tmp_path / f"out{number}"
            ended = run("data", "pull", cohort, "--from", pacs, "--out", out)
            assert ended.status == status, ended.text
            kept = list((out / "images").rglob("*.dcm"))
            assert len(kept) == (0 if status else volume().shape[2])
            assert "MRN-1" not in ended.text
