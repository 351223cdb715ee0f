"""Refusal of submitted jobs that too few sites would run.

Policies stay at the sites: the server sends what a job declares, and each connected site replies which rule the job
breaks, if any. That is advice: a site decides when the job starts, by what it then receives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable, make_reply

from oncofed.audit import REFUSED
from oncofed.errors import AuditError, PolicyError, SpecError, one_line
from oncofed.flare.folders import kit_folder
from oncofed.flare.runtime.job_recovery import is_for
from oncofed.flare.runtime.site_query import query_sites
from oncofed.flare.security.admission import NO_POLICY
from oncofed.flare.security.archives import pack_of_submission
from oncofed.flare.security.recording import audit_log
from oncofed.flare.security.revocation import submitter
from oncofed.packs.approvals import refusal_at_site
from oncofed.packs.pack import read_pack
from oncofed.privacy.policy import ProposedJob, read_policy
from oncofed.privacy.settings import NoiseKind, ScoresKind

# In a job's meta data: what it declares.
ASKS = "oncofed.asks"
_TOPIC = "oncofed.admits"
_REASON = "oncofed.reason"
# In a query: the pack that the job brings.
_CODE = "code"
_LONGEST = 200


def job_asks(
    dataset: str,
    network: str | None = None,
    strategy: str | None = None,
    pack: str | None = None,
    quorum: int = 0,
    smallest_sum: int | None = None,
    noise_multiplier: float | None = None,
    noise: NoiseKind | None = None,
    scores: ScoresKind = "each",
) -> dict[str, Any]:
    """Return the meta data that declares a job's requests.

    Args:
        dataset: that it reads.
        network: None where nothing is trained.
        strategy: None where nothing is trained.
        pack: digest of the code that it brings.
        quorum: number of sites that it needs; 0: all that are queried.
        smallest_sum: fewest sites in a sum of masked updates; None: no masks.
        noise_multiplier: of steps with differential privacy; None: it has none.
        noise: who makes it.
        scores: how the sites' scores leave.
    """
    asks = {"dataset": dataset, "network": network, "strategy": strategy, "pack": pack, "quorum": quorum}
    return {
        ASKS: {
            **asks,
            "smallest_sum": smallest_sum,
            "noise_multiplier": noise_multiplier,
            "noise": noise,
            "scores": scores,
        }
    }


class SubmissionCheck(FLComponent):
    """Refuses jobs that too few sites would run.

    Runs on the server.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Query the sites about a submitted job."""
        if event_type != EventType.SUBMIT_JOB:
            return
        meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        asks = (meta.get(JobMetaKey.CUSTOM_PROPS.value) or {}).get(ASKS)
        if not isinstance(asks, dict):
            return  # no job of oncofed; the sites decide when it starts
        queried, refused = self._query(meta, asks, fl_ctx)
        quorum = asks.get("quorum")
        needed = quorum if isinstance(quorum, int) and quorum > 0 else queried
        if refused and queried - len(refused) < needed:
            why = "; ".join(f"{site}: {reason}" for site, reason in sorted(refused.items()))
            text = f"{queried - len(refused)} of {queried} connected sites would run it, it needs {needed}. {why}"
            fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, text, sticky=False, private=True)

    def _query(self, meta: dict[str, Any], asks: dict[str, Any], fl_ctx: FLContext) -> tuple[int, dict[str, str]]:
        """Return the number of queried sites, and refusals by site."""
        engine: Any = fl_ctx.get_engine()
        placed = meta.get(JobMetaKey.DEPLOY_MAP.value, {}).values()
        clients = [c for c in engine.get_clients() if any(is_for(sites, c.name) for sites in placed)]
        query = Shareable({**asks, "name": str(meta.get(JobMetaKey.JOB_NAME.value, "")), "person": submitter()})
        if asks.get("pack"):
            query[_CODE] = pack_of_submission()
        refused: dict[str, str] = {}
        # A site that does not reply, or has another version, decides when the job starts.
        for site, reply in query_sites(engine, _TOPIC, query, clients).items():
            reason = reply.get_header(_REASON)
            if isinstance(reason, str) and reason:
                refused[site] = one_line(reason, 3 * _LONGEST)
        return len(clients), refused


class SubmissionReplies(FLComponent):
    """Replies whether a site would run a job.

    Runs on the site. The reply depends on its policy and its decisions about code.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Reply to queries once the site has started."""
        if event_type == EventType.SYSTEM_START:
            engine: Any = fl_ctx.get_engine()
            engine.register_aux_message_handler(_TOPIC, self._reply)

    def _reply(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic
        reply = make_reply(ReturnCode.OK)
        smallest_sum, noise = request.get("smallest_sum"), request.get("noise_multiplier")
        facts = ProposedJob(
            name=_text(request.get("name")) or "",
            person=_text(request.get("person")),
            dataset=_text(request.get("dataset")) or "",
            network=_text(request.get("network")),
            strategy=_text(request.get("strategy")),
            smallest_sum=smallest_sum if isinstance(smallest_sum, int) else None,
            noise_multiplier=noise if isinstance(noise, float) else None,
            noise="shared" if request.get("noise") == "shared" else "local",
            scores="summed" if request.get("scores") == "summed" else "each",
        )
        pack = _text(request.get("pack"))
        kit, log = kit_folder(fl_ctx), audit_log(fl_ctx)

        def record(what: str, **values: Any) -> None:
            log.write(what, facts.person or "unknown", **values)

        try:
            policy = read_policy(kit / "local")
            reason = policy.refusal(facts) if policy else NO_POLICY
            if pack and not reason:
                reason = _refusal_of_code(kit, pack, request.get(_CODE), record)
            if reason:
                about = {"name": facts.name, "dataset": facts.dataset, "network": facts.network, "rule": reason}
                record(REFUSED, when="it was submitted", **about, **({"pack": pack} if pack else {}))
        except PolicyError as error:
            reason = str(error)
        except AuditError as error:
            logging.getLogger(__name__).error(str(error))
            reason = "it cannot write its audit log, and runs nothing unrecorded"
        if reason:
            reply.set_header(_REASON, reason)
        return reply


def _refusal_of_code(kit: Path, digest: str, content: Any, record: Callable[..., object]) -> str | None:
    """Return why a job's pack may not run, if so.

    The text may leave the site.
    """
    if not isinstance(content, bytes):
        return f"the job names a pack ({digest[:12]}…) that it does not bring"
    try:
        pack = read_pack(content, "the pack")
    except SpecError as error:
        return str(error)
    if pack.digest != digest:
        return f"the job brings another pack ({pack.digest[:12]}…) than it names ({digest[:12]}…)"
    return refusal_at_site(kit, pack, record)


def _text(value: Any) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) and value else None
