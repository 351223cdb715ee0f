"""At a site: a job is admitted by the policy before any data is read, and each message is looked at before it leaves.

Both are recorded in the site's audit log first; what cannot be recorded does not happen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import statistics
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.artifacts.training_profile import bins_of
from oncofed.audit import ADMITTED, ANCHORED, HELD_BACK, LEFT, REFUSED, Anchor, AuditLog
from oncofed.client.datasets import DATASETS_FILE, dataset_folder
from oncofed.errors import AuditError, FederationError, OncofedError, PolicyError
from oncofed.flare import wire
from oncofed.flare.wire import TASK_COMBINE, TASK_PREPARE, TASK_TRAIN, TASK_VALIDATE
from oncofed.messages.compression import NotFiniteError, ReceivedUpdate, travelling_bytes, without_extra
from oncofed.models.weights import Digest, Weights, sum_of_squares
from oncofed.packs.approvals import made_by, refusal_at_site
from oncofed.packs.pack import Pack
from oncofed.privacy.outbound import check_counts, check_numbers, most_scored, withhold
from oncofed.privacy.policy import JobFacts, Policy, read_policy
from oncofed.privacy.pooled import SUMS
from oncofed.tasks import metrics_that_may_leave
from oncofed.training import Plan

STOPPED = "stopped by the site's outbound policy"
# Rounds behind what is usual, before an update can be unusual.
_ROUNDS_TO_KNOW = 3
# An update is unlike this job's others here when it points far less in its predecessor's direction than they do. It is
# recorded, not held back: a rate of learning that changes makes honest ones like that, too.
_LEAST_SIMILARITY, _FAR_LESS = 0.05, 0.2
_SAMPLED_NUMBERS = 1 << 18
_ALLOWANCE = 1.1
# A job asks for sums twice; once more each time that its server was killed meanwhile.
_MOST_SUMS = 6
# Names, framing and numbers of a message, beside its tensors.
_FRAMING_BYTES = 1 << 20
_SECONDS_PER_HOUR = 3600.0


def admit(
    fl_ctx: FLContext,
    dataset: str,
    network: str | None = None,
    strategy: str | None = None,
    pack: Pack | None = None,
) -> Policy | None:
    """Return the policy under which a job may run at this site; None in a simulation, where no site is.

    A pack that the site has not seen yet is kept for its admin to look at.

    Args:
        fl_ctx: of the job's process.
        dataset: that it asks for.
        network: of the job; None where nothing is trained.
        strategy: of the job.
        pack: the code that it brings.

    Raises:
        PolicyError: the job may not run here; the text may leave the site.
        AuditError: it cannot be recorded.
    """
    policy = read_policy(_local(fl_ctx))
    if policy is None:
        return None
    facts = JobFacts(*name_and_person(fl_ctx), dataset, network, strategy)
    reason = policy.refusal(facts)
    if pack and not reason:
        kit = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
        reason = refusal_at_site(kit, pack, partial(record, fl_ctx))
    record(
        fl_ctx,
        REFUSED if reason else ADMITTED,
        name=facts.name,
        dataset=dataset,
        dataset_digest=dataset_digest(fl_ctx, dataset),
        network=network,
        strategy=strategy,
        code=f"oncofed {oncofed.__version__}",
        **({"pack": pack.digest, "pack_by": made_by(pack)} if pack else {}),
        policy=policy.digest,
        **({"rule": reason} if reason else {}),
    )
    if reason:
        raise PolicyError(reason)
    return policy


def record(fl_ctx: FLContext, what: str, **facts: Any) -> Anchor:
    """Write to this participant's audit log; who is the person that submitted the job.

    Raises:
        AuditError: it cannot be written.
    """
    _, person = name_and_person(fl_ctx)
    return audit_log(fl_ctx).write(what, person or "unknown", job=str(fl_ctx.get_job_id()), **facts)


def keep_anchor(site: str, result: Shareable, fl_ctx: FLContext) -> None:
    """At the server: record the last line of a site's audit log, as it told it with an answer.

    What is no anchor is not kept: it comes from a site, which may send anything.
    """
    try:
        anchor = Anchor.parse(wire.told_anchor(result) or "")
    except ValueError:
        return
    try:
        audit_log(fl_ctx).write(ANCHORED, site, job=str(fl_ctx.get_job_id()), anchor=str(anchor))
    except AuditError as error:
        logging.getLogger(__name__).error(str(error))


def audit_log(fl_ctx: FLContext) -> AuditLog:
    """Return this participant's audit log."""
    return AuditLog(Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir()))


class OutboundFilter(FLComponent):
    """Looks at each answer of a site's job process after all filters, and replaces one that may not leave.

    A site's kit names it, not a job. What goes wrong in it holds a message back, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._outbound: OutboundPolicy | None = None
        self._stopped = ""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look at an answer."""
        if event_type != EventType.AFTER_TASK_RESULT_FILTER:
            return
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        if not isinstance(reply, Shareable):
            return  # FLARE sends an error in its place
        try:
            self._look(reply, fl_ctx)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing leaves
            self.log_error(fl_ctx, f"a message was held back: {type(error).__name__}: {error}", fire_event=False)
            if isinstance(error, PolicyError | FederationError) and not isinstance(error, NotFiniteError):
                self._stopped = STOPPED
            said = str(error) if isinstance(error, NotFiniteError) else self._stopped
            reason = said or "what leaves it could not be looked at or recorded; the site's own log says more"
            _replace(reply, wire.refusal(reason, passing=isinstance(error, AuditError)))
            self._record_held_back(str(error), fl_ctx)

    def _look(self, reply: Shareable, fl_ctx: FLContext) -> None:
        if self._stopped:
            raise PolicyError("the job was stopped here before")
        if reply.get_return_code() != ReturnCode.OK:
            _keep_refusal_alone(reply)
            return
        task = str(fl_ctx.get_prop(FLContextKey.TASK_NAME) or reply.get_header(ReservedHeaderKey.TASK_NAME))
        if from_shareable(reply).data_kind == DataKind.STATISTICS:
            record(fl_ctx, LEFT, task=task, to="server", numbers=len(reply))
            return
        self._outbound = self._outbound or OutboundPolicy.of_job(fl_ctx)
        facts = self._outbound.check(task, reply)
        anchor = record(fl_ctx, LEFT, task=task, to="server", **facts)
        if "unusual" in facts:
            self.log_warning(fl_ctx, f"an update is unlike this job's others: {facts['similarity']}", fire_event=False)
        wire.tell_anchor(reply, str(anchor))

    def _record_held_back(self, why: str, fl_ctx: FLContext) -> None:
        try:
            record(fl_ctx, HELD_BACK, why=why)
        except (AuditError, OncofedError) as error:
            self.log_error(fl_ctx, str(error), fire_event=False)


class OutboundPolicy:
    """What one job may send from one site, and what it sent.

    Args:
        plan: of the job.
        federation: of the job.
        policy: of the site.
        ends: when the job's hours here are over, by ``time.time``; None: never.
        sent: bytes that left before, in an earlier process.
    """

    def __init__(
        self, plan: Plan, federation: FederationPlan, policy: Policy, ends: float | None = None, sent: int = 0
    ) -> None:
        self._federation, self._policy, self._ends, self._sent = federation, policy, ends, sent
        self._classes = list(plan.task.classes.values())
        self._metrics = metrics_that_may_leave(plan.task)
        self._bins = bins_of(plan.data)
        layout = plan.layout()
        self._like: Weights = layout.sent
        self._algorithm = federation.algorithm()
        self._extra: Weights = self._algorithm.from_clients(layout)
        self._sums = 0
        # To score a model on, as the site said first; a later process of the job is not asked again.
        self._cases: int | None = None
        self._norms: list[float] = []
        self._similarities: list[float] = []
        self._last_sample: torch.Tensor | None = None

    @classmethod
    def of_job(cls, fl_ctx: FLContext) -> OutboundPolicy:
        """Return it for the job of this process, from its configuration as the site was given it.

        Raises:
            PolicyError: there is no policy, or the job is none of oncofed's.
        """
        policy = read_policy(_local(fl_ctx))
        if policy is None:
            raise PolicyError("there is no policy")
        path = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)) / "config" / "config_fed_client.json"
        try:
            arguments = json.loads(path.read_text(encoding="utf-8"))["executors"][0]["executor"]["args"]
            plan, federation = Plan.model_validate(arguments["plan"]), arguments.get("federation") or {}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise PolicyError(f"the job does not say what it sends ({type(error).__name__})") from None
        job = str(fl_ctx.get_job_id())
        before = [entry for entry in audit_log(fl_ctx).entries() if entry.get("job") == job]
        sent = sum(int(entry.get("bytes", 0)) for entry in before if entry["what"] == LEFT)
        admitted = next((entry["time"] for entry in before if entry["what"] == ADMITTED), None)
        begun = datetime.fromisoformat(admitted).timestamp() if admitted else time.time()
        hours = policy.hours(plan.resources.gpus if torch.cuda.is_available() else 0)
        ends = begun + hours * _SECONDS_PER_HOUR if hours else None
        return cls(plan, FederationPlan.model_validate(federation), policy, ends, sent)

    def check(self, task: str, reply: Shareable) -> dict[str, Any]:
        """Check one message, and return what the audit log is to say of it.

        Raises:
            PolicyError: it may not leave.
            FederationError: its tensors are not those that the job declares.
        """
        message = from_shareable(reply)
        facts: dict[str, Any] = {"bytes": wire.bytes_of(reply)}
        if task == TASK_PREPARE:
            numbers = wire.read_numbers_message(reply)
            check_counts(numbers, oncofed.__version__, self._bins)
            self._cases = most_scored(numbers)
            if "profile" in numbers and not self._policy.leaves.training_profile:
                message.data = {name: value for name, value in numbers.items() if name != "profile"}
                message.update_shareable(reply)
        elif task == TASK_VALIDATE:
            numbers = wire.read_numbers_message(reply)
            check_numbers(numbers, self._classes, sums=True, most=self._cases, metrics=self._metrics)
            changed = self._without_sums_that_stay(numbers)
            if withhold(numbers, self._policy.leaves.minimum_patients) or changed:
                message.data = numbers
                message.update_shareable(reply)
        elif task in (TASK_TRAIN, TASK_COMBINE):
            facts |= self._check_update(task, message, reply)
        else:
            raise PolicyError(f"no job of oncofed has a task {task!r}")
        self._spend(facts["bytes"])
        return facts

    def _without_sums_that_stay(self, numbers: dict[str, Any]) -> bool:
        """Take counts and sums out that the site keeps back, or sent often enough; return whether there were any.

        Of one model they tell of nobody; of many models, or at many temperatures, they would.
        """
        there = SUMS & numbers.keys()
        self._sums += bool(there)
        if self._policy.leaves.pooled_figures and self._sums <= _MOST_SUMS:
            return False
        for name in there:
            del numbers[name]
        return bool(there)

    def _check_update(self, task: str, message: Any, reply: Shareable) -> dict[str, Any]:
        tensors, cases, steps, numbers = wire.read_update_message(reply)
        check_numbers(numbers, self._classes, most=self._cases, metrics=self._metrics)
        if not all(isinstance(value, int) and 0 <= value < 1 << 40 for value in (cases, steps)):
            raise PolicyError("its counts of cases and steps are not within their bounds")
        if withhold(numbers, self._policy.leaves.minimum_patients):
            wire.replace_numbers(message, numbers)
            message.update_shareable(reply)
        if not self._algorithm.schedule.reaches_server and not tensors:
            return {}
        swarm = task == TASK_COMBINE
        kind = "native" if swarm else self._federation.exchange.update
        delta, extra = without_extra(tensors)
        update = ReceivedUpdate(delta, self._like, kind, extra, {} if swarm else self._extra)
        largest = travelling_bytes(self._like, kind) + travelling_bytes(self._extra, "native")
        allowed = (self._policy.leaves.mb_a_round or 0) * 1e6 or largest * _ALLOWANCE + _FRAMING_BYTES
        if update.nbytes > allowed:
            raise PolicyError(f"{update.nbytes / 1e6:.1f} MB, expected at most {allowed / 1e6:.1f}")
        norm, digest, sample = _read_through(update)
        usual = statistics.median(self._norms) if len(self._norms) >= _ROUNDS_TO_KNOW else 0.0
        if usual and norm > usual * self._policy.leaves.largest_norm:
            raise PolicyError(f"the update is {norm / usual:.0f} times as long as this job's usual one here")
        self._norms.append(norm)
        return {"tensors": len(update), "digest": digest, **self._compare_with_last(sample)}

    def _compare_with_last(self, sample: torch.Tensor) -> dict[str, Any]:
        """Return how similar an update is to the one before it, as a cosine, and ``unusual`` where it is unlike others.

        A picture in the place of an update, as long as updates are, has another direction than they.
        """
        last, self._last_sample = self._last_sample, sample
        if last is None or not sample.numel():
            return {}
        similarity = float(torch.nn.functional.cosine_similarity(last, sample, dim=0))
        usual = statistics.median(self._similarities) if len(self._similarities) >= _ROUNDS_TO_KNOW else 0.0
        self._similarities.append(similarity)
        facts: dict[str, Any] = {"similarity": round(similarity, 3)}
        if usual > _LEAST_SIMILARITY and similarity < usual * _FAR_LESS:
            facts["unusual"] = f"usually {usual:.3f}"
        return facts

    def _spend(self, size: int) -> None:
        limit = self._policy.leaves.mb_a_job
        if limit is not None and self._sent + size > limit * 1e6:
            raise PolicyError(f"the job has sent {self._sent / 1e6:.1f} of {limit:g} MB")
        if self._ends is not None and time.time() > self._ends:
            raise PolicyError("the job's hours here are over")
        self._sent += size


def _read_through(update: ReceivedUpdate) -> tuple[float, str, torch.Tensor]:
    """Return an update's norm, its digest, and a sample of its numbers; no more than one tensor is held at a time.

    The sample is every so many of them, as float32: enough to know the update's direction, and little to keep.
    """
    stride = max(1, update.floats // _SAMPLED_NUMBERS)
    squares, digest, sample = 0.0, Digest(), []
    for name in sorted(update):
        value = update[name]
        digest.add(name, value)
        if value.is_floating_point():
            squares += update.squares[name] if name in update.squares else sum_of_squares(value)
            sample.append(value.reshape(-1)[::stride].to(torch.float32, copy=True))
    return math.sqrt(squares), str(digest), torch.cat(sample) if sample else torch.empty(0)


def _replace(reply: Shareable, other: Shareable) -> None:
    """Make a message another one: FLARE sends the object that it has."""
    kept = {ReservedHeaderKey.TASK_NAME: reply.get_header(ReservedHeaderKey.TASK_NAME)}
    reply.clear()
    reply.update(other)
    for name, value in kept.items():
        if value is not None:
            reply.set_header(name, value)


def _keep_refusal_alone(reply: Shareable) -> None:
    """Let of a message that says that a task was not done nothing leave but that."""
    reason = wire.refusal_reason(reply)
    other = wire.refusal(str(reason), wire.may_pass(reply))
    other.set_return_code(reply.get_return_code())
    _replace(reply, other)


def _local(fl_ctx: FLContext) -> Path:
    return Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir())


def name_and_person(fl_ctx: FLContext) -> tuple[str, str | None]:
    """Return a job's name, and who submitted it; None where FLARE does not say."""
    meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
    person = meta.get(JobMetaKey.SUBMITTER_NAME.value)
    return str(meta.get(JobMetaKey.JOB_NAME.value, "")), str(person) if person else None


def dataset_digest(fl_ctx: FLContext, dataset: str) -> str | None:
    """Return what tells a registered dataset from what it was before; None where it is not there."""
    try:
        folder = dataset_folder(_local(fl_ctx) / DATASETS_FILE, fl_ctx.get_identity_name(), dataset)
        return hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    except (OSError, OncofedError):
        return None
