"""Who a site is to its peers in secure aggregation, by its kit.

In a simulation there are no certificates, and no one is verified: its sites are one machine's.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from cryptography import x509
from nvflare.apis.fl_context import FLContext

from oncofed.client.secure_aggregation import Identity
from oncofed.errors import PolicyError
from oncofed.flare.folders import has_kit, kit_folder
from oncofed.flare.in_context import made_once
from oncofed.flare.security.revocation import list_and_root, read_revoked
from oncofed.privacy.secure_aggregation import KeyAdvertisement, Verify, VerifyKey
from oncofed.privacy.secure_aggregation.certificates import NOT_A_SITE, CertifiedSites
from oncofed.rounds.sums import unverified
from oncofed.signing import is_of_site, sign_with

# What stands for a signature and a certificate in a simulation.
_NONE = b"-"
# The context's property by which a process's executor and filter have one identity.
_IDENTITY = "oncofed.identity"


def identity_of(fl_ctx: FLContext) -> Identity:
    """Return a site's identity, in a process always the same one.

    Args:
        fl_ctx: of the job's process.

    Raises:
        PolicyError: the kit's certificate is not a site's.
    """
    return made_once(fl_ctx, _IDENTITY, Identity, _read_identity)


def _read_identity(fl_ctx: FLContext) -> Identity:
    site, startup = fl_ctx.get_identity_name(), kit_folder(fl_ctx) / "startup"
    if not has_kit(fl_ctx):
        return Identity(site=site, sign=lambda data: _NONE, certificates=_NONE, verify=unverified)
    certificates = (startup / "client.crt").read_bytes()
    if not is_of_site(x509.load_pem_x509_certificate(certificates)):
        # Its peers would refuse it, after it had trained.
        raise PolicyError(f"its certificate does not say that it is a site. {NOT_A_SITE}")
    return Identity(
        site=site,
        sign=sign_with(startup / "client.key"),
        certificates=certificates,
        verify=verify_of_alliance(fl_ctx),
    )


def verify_of_alliance(fl_ctx: FLContext) -> Verify:
    """Return the check of an advertised key: of a site that the root of one's own kit certified, and not revoked."""
    revoked_file, root_file = list_and_root(fl_ctx)
    return partial(_verify, revoked_file, x509.load_pem_x509_certificate(root_file.read_bytes()))


def verify_for_server(fl_ctx: FLContext) -> Verify:
    """Return the server's check; in a simulation it takes any key.

    The secrecy of an update does not rest on it: sites check each other.
    """
    return verify_of_alliance(fl_ctx) if has_kit(fl_ctx) else unverified


def _verify(revoked_file: Path, root: x509.Certificate, advertisement: KeyAdvertisement) -> VerifyKey:
    # Read anew: a site may be revoked while a job runs.
    revoked = read_revoked(revoked_file, root).names if revoked_file.is_file() else frozenset()
    return CertifiedSites(root, revoked_names=revoked, now=datetime.now(timezone.utc))(advertisement)
