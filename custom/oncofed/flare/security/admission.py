"""Admission of a job by a site's policy.

It is checked before any data is read.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import partial

from nvflare.apis.fl_context import FLContext

import oncofed
from oncofed.audit import ADMITTED, REFUSED
from oncofed.client.datasets import DATASETS_FILE, dataset_folder
from oncofed.errors import OncofedError, PolicyError
from oncofed.flare.folders import has_kit, kit_folder, local_folder
from oncofed.flare.security.recording import name_and_person, record
from oncofed.packs.approvals import made_by, refusal_at_site
from oncofed.packs.pack import Pack
from oncofed.privacy.policy import Policy, ProposedJob, read_policy
from oncofed.privacy.settings import NoiseKind, ScoresKind
from oncofed.private_files import random_secret

# In the kit: with it, digests that leave in jobs with differential privacy can be checked here alone.
_DIGEST_KEY = ".digest_key"
NO_POLICY = "its kit has no policy, so that nothing runs there; the alliance makes a new kit"


def admit_job(
    fl_ctx: FLContext,
    dataset: str,
    network: str | None = None,
    strategy: str | None = None,
    pack: Pack | None = None,
    smallest_sum: int | None = None,
    noise_multiplier: float | None = None,
    noise: NoiseKind | None = None,
    scores: ScoresKind = "each",
) -> Policy | None:
    """Return the site's policy, if it admits the job.

    In a simulation it is None. A pack that the site has not seen yet is kept for its admin to review.

    Args:
        fl_ctx: of the job's process.
        dataset: that it requests.
        network: of the job; None where nothing is trained.
        strategy: of the job.
        pack: the code that it brings.
        smallest_sum: see ``ProposedJob``.
        noise_multiplier: see ``ProposedJob``.
        noise: see ``ProposedJob``.
        scores: see ``ProposedJob``.

    Raises:
        PolicyError: the job may not run here; the text may leave the site.
        AuditError: it cannot be recorded.
    """
    policy = read_policy(local_folder(fl_ctx))
    if policy is None:
        if has_kit(fl_ctx):
            raise PolicyError(NO_POLICY)
        return None
    name, person = name_and_person(fl_ctx)
    facts = ProposedJob(
        name=name,
        person=person,
        dataset=dataset,
        network=network,
        strategy=strategy,
        smallest_sum=smallest_sum,
        noise_multiplier=noise_multiplier,
        noise=noise,
        scores=scores,
    )
    reason = policy.refusal(facts)
    if pack and not reason:
        reason = refusal_at_site(kit_folder(fl_ctx), pack, partial(record, fl_ctx))
    record(
        fl_ctx,
        REFUSED if reason else ADMITTED,
        name=facts.name,
        dataset=dataset,
        dataset_digest=dataset_digest(fl_ctx, dataset),
        network=network,
        strategy=strategy,
        **({"smallest_sum": smallest_sum, "scores": scores} if smallest_sum else {}),
        **({"noise_multiplier": noise_multiplier, "noise": noise} if noise_multiplier else {}),
        code=f"oncofed {oncofed.__version__}",
        **({"pack": pack.digest, "pack_by": made_by(pack)} if pack else {}),
        policy=policy.digest,
        **({"rule": reason} if reason else {}),
    )
    if reason:
        raise PolicyError(reason)
    return policy


def dataset_digest(fl_ctx: FLContext, dataset: str, keyed: bool = False) -> str | None:
    """Return the SHA-256 of a dataset's manifest, if any.

    Args:
        fl_ctx: of the job's process.
        dataset: its name.
        keyed: with a secret of the site (HMAC; RFC 2104), which makes it no function of the patients alone: whoever
            guesses a manifest cannot try it.
    """
    try:
        folder = dataset_folder(local_folder(fl_ctx) / DATASETS_FILE, fl_ctx.get_identity_name(), dataset)
        content = (folder / "dataset.json").read_bytes()
        if keyed:
            return hmac.new(random_secret(kit_folder(fl_ctx) / _DIGEST_KEY), content, hashlib.sha256).hexdigest()
        return hashlib.sha256(content).hexdigest()
    except (OSError, OncofedError):
        return None
