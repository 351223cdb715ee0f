"""Sites are asked about a job when it is submitted: one that too few of them would run is refused then, with reasons.

Policies stay at the sites: the server tells what a job says of itself, each connected site answers yes or which rule
the job breaks. That is advice: a site decides when the job starts, by what it is then given.
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

from oncofed.audit import REFUSED, AuditLog
from oncofed.errors import AuditError, PolicyError, SpecError, one_line
from oncofed.flare.runtime.job_recovery import is_for
from oncofed.flare.runtime.site_query import query_sites
from oncofed.flare.security.archives import pack_of_taken
from oncofed.flare.security.revocation import submitting
from oncofed.packs.approvals import refusal_at_site
from oncofed.packs.pack import read_pack
from oncofed.privacy.policy import JobFacts, read_policy

# In a job's meta data: what it says of itself.
ASKS = "oncofed.asks"
_TOPIC = "oncofed.admits"
_REASON = "oncofed.reason"
# In a question: the pack that the job brings.
_CODE = "code"
_LONGEST = 200


def job_asks(
    dataset: str, network: str | None = None, strategy: str | None = None, pack: str | None = None, quorum: int = 0
) -> dict[str, Any]:
    """Return what a job's meta data say of what it asks for.

    Args:
        dataset: that it reads.
        network: None where nothing is trained.
        strategy: None where nothing is trained.
        pack: digest of the code that it brings.
        quorum: how many sites it needs; 0: all that are asked.
    """
    return {ASKS: {"dataset": dataset, "network": network, "strategy": strategy, "pack": pack, "quorum": quorum}}


class SubmissionCheck(FLComponent):
    """At the server: refuses a job, as it is submitted, that too few of the connected sites would run."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Ask the sites."""
        if event_type != EventType.SUBMIT_JOB:
            return
        meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        asks = (meta.get(JobMetaKey.CUSTOM_PROPS.value) or {}).get(ASKS)
        if not isinstance(asks, dict):
            return  # nothing of ours, which the sites look at when it starts
        asked, refused = self._ask(meta, asks, fl_ctx)
        quorum = asks.get("quorum")
        needed = quorum if isinstance(quorum, int) and quorum > 0 else asked
        if refused and asked - len(refused) < needed:
            why = "; ".join(f"{site}: {reason}" for site, reason in sorted(refused.items()))
            text = f"{asked - len(refused)} of {asked} connected sites would run it, it needs {needed}. {why}"
            fl_ctx.set_prop(FLContextKey.JOB_BLOCK_REASON, text, sticky=False, private=True)

    def _ask(self, meta: dict[str, Any], asks: dict[str, Any], fl_ctx: FLContext) -> tuple[int, dict[str, str]]:
        """Return how many sites were asked, and the reasons of those that would not run the job."""
        engine: Any = fl_ctx.get_engine()
        placed = meta.get(JobMetaKey.DEPLOY_MAP.value, {}).values()
        clients = [c for c in engine.get_clients() if any(is_for(sites, c.name) for sites in placed)]
        question = Shareable({**asks, "name": str(meta.get(JobMetaKey.JOB_NAME.value, "")), "person": submitting()})
        if asks.get("pack"):
            question[_CODE] = pack_of_taken()
        refused: dict[str, str] = {}
        # A site that does not answer, or is of another version, says what it thinks when the job starts.
        for site, answer in query_sites(engine, _TOPIC, question, clients).items():
            reason = answer.get_header(_REASON)
            if isinstance(reason, str) and reason:
                refused[site] = one_line(reason, 3 * _LONGEST)
        return len(clients), refused


class SubmissionReplies(FLComponent):
    """At a site: answers whether its policy, and what it decided about code, would let a job run."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin to answer when the site has started."""
        if event_type == EventType.SYSTEM_START:
            engine: Any = fl_ctx.get_engine()
            engine.register_aux_message_handler(_TOPIC, self._answer)

    def _answer(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        reply = make_reply(ReturnCode.OK)
        facts = JobFacts(
            _text(request.get("name")) or "",
            _text(request.get("person")),
            _text(request.get("dataset")) or "",
            _text(request.get("network")),
            _text(request.get("strategy")),
        )
        pack = _text(request.get("pack"))
        kit = Path(workspace.get_root_dir())
        log = AuditLog(kit)

        def record(what: str, **said: Any) -> None:
            log.write(what, facts.person or "unknown", **said)

        try:
            policy = read_policy(kit / "local")
            reason = policy.refusal(facts) if policy else None
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
    """Return why the pack that a job brings may not run at a site, in words that may leave it; None where it may."""
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
