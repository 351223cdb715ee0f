"""Who a site is to its peers in secure aggregation, by its kit.

In a simulation there are no certificates, and no one is verified: its sites are one machine's.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from cryptography import x509
from nvflare.apis.fl_context import FLContext

from oncofed.client.secure_aggregation import Identity
from oncofed.flare.folders import kit_folder
from oncofed.flare.security.revocation import list_and_root, read_revoked
from oncofed.privacy.secure_aggregation import KeyAdvertisement, Verify, VerifyKey
from oncofed.privacy.secure_aggregation.certificates import CertifiedSites
from oncofed.rounds.sums import unverified
from oncofed.signing import signature_by

# What stands for a signature and a certificate in a simulation.
_NONE = b"-"


def identity_of(fl_ctx: FLContext, simulated: bool) -> Identity:
    """Return a site's identity.

    Args:
        fl_ctx: of the job's process.
        simulated: the site is one of a simulation, which has no kit.
    """
    site, startup = fl_ctx.get_identity_name(), kit_folder(fl_ctx) / "startup"
    if simulated:
        return Identity(site=site, sign=lambda data: _NONE, certificates=_NONE, verify=unverified)
    return Identity(
        site=site,
        sign=partial(signature_by, startup / "client.key"),
        certificates=(startup / "client.crt").read_bytes(),
        verify=verify_of_alliance(fl_ctx),
    )


def verify_of_alliance(fl_ctx: FLContext) -> Verify:
    """Return the check of an advertised key: certified by the root of one's own kit, and not revoked."""
    revoked_file, root_file = list_and_root(fl_ctx)
    root = x509.load_pem_x509_certificate(root_file.read_bytes())
    return partial(_verify, revoked_file, root, _servers(root_file.with_name("fed_client.json")))


def verify_for_server(fl_ctx: FLContext) -> Verify:
    """Return the server's check; in a simulation it takes any key.

    The secrecy of an update does not rest on it: sites check each other.
    """
    _, root_file = list_and_root(fl_ctx)
    return verify_of_alliance(fl_ctx) if root_file.is_file() else unverified


def _servers(config: Path) -> frozenset[str]:
    """Return the names in the certificates of a kit's servers, which are no sites.

    The root certifies the server, too: without this it could join its own sum.
    """
    if not config.is_file():
        return frozenset()  # the server's own kit
    servers = json.loads(config.read_text(encoding="utf-8"))["servers"]
    return frozenset(str(one[name]) for one in servers for name in ("identity", "name") if name in one)


def _verify(
    revoked_file: Path, root: x509.Certificate, servers: frozenset[str], advertisement: KeyAdvertisement
) -> VerifyKey:
    # Read anew: a site may be revoked while a job runs.
    revoked = read_revoked(revoked_file, root).names if revoked_file.is_file() else frozenset()
    return CertifiedSites(root, revoked_names=revoked, not_sites=servers, now=datetime.now(timezone.utc))(advertisement)
