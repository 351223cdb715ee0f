"""Swarm learning: in each round one site puts together what the others send it, so the server sees no site's update.

Peers send each other their updates over the alliance's own connections, encrypted from site to site: the server passes
on what it cannot read (Warnat-Herresthal et al., Nature 2021). Unlike in FLARE's swarm workflow the server still leads
the rounds, so that quorum, deadline, lost sites, model selection and restarts are those of every strategy.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from safetensors import SafetensorError
from safetensors.torch import load, save

from oncofed.algorithms import Update
from oncofed.algorithms.fedavg import FedAvg
from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import FederationError
from oncofed.flare.transfer.protocol import message_timeout
from oncofed.messages.compression import ReceivedUpdate
from oncofed.models.weights import WeightLayout, Weights
from oncofed.rounds.intake import UpdateIntake
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState

_TOPIC = "oncofed.peer"
_UPDATE = "update"
_ROUND = "round"
# As many sites as a job may ask.
_MOST_HELD = 1000


class PeerExchange(FLComponent):
    """A site among its peers: gives its update to the round's collector, and holds the others' when it is that one.

    Args:
        federation: the job's rules.
    """

    def __init__(self, federation: FederationPlan) -> None:
        super().__init__()
        self._federation = federation
        self._lock = threading.Lock()
        self._held: dict[str, tuple[int, bytes]] = {}
        self._lengths: list[list[float]] = []

    def listen(self, fl_ctx: FLContext) -> None:
        """Take updates of peers from now on."""
        fl_ctx.get_engine().register_aux_message_handler(topic=_TOPIC, message_handle_func=self._receive)

    def give(self, update: Weights, number: int, collector: str, fl_ctx: FLContext) -> str | None:
        """Send an update to the round's collector; return its digest, by which the server names it; None: not there."""
        sent = save({name: value.contiguous() for name, value in update.items()})
        if collector == fl_ctx.get_identity_name():
            return self._hold(number, sent)
        with fl_ctx.get_engine().new_context() as context:
            replies = context.get_engine().send_aux_request(
                targets=[collector],
                topic=_TOPIC,
                request=Shareable({_ROUND: number, _UPDATE: sent}),
                timeout=message_timeout(len(sent)),
                fl_ctx=context,
                secure=bool(fl_ctx.get_prop(FLContextKey.SECURE_MODE, False)),
            )
        reply = (replies or {}).get(collector)
        if not isinstance(reply, Shareable) or reply.get_return_code() != ReturnCode.OK:
            return None
        return hashlib.sha256(sent).hexdigest()

    def combine(
        self, wanted: Mapping[str, Mapping[str, Any]], number: int, like: Weights, parameters: frozenset[str]
    ) -> PeerMean:
        """Return the mean of updates, weighted by cases.

        Args:
            wanted: site -> ``digest`` of its update, and the ``cases`` behind it, as the server was told by that site.
            number: of the round.
            like: the model's weights that travel; their values do not matter.
            parameters: names of those that are trained.

        Raises:
            FederationError: no update is left that counts.
        """
        with self._lock:
            held = {site: self._held.get(str(facts["digest"])) for site, facts in wanted.items()}
        missing = sorted(site for site, found in held.items() if found is None)
        if missing:
            return PeerMean({}, 0, missing, {})
        turn, refused = RoundState(), {}
        for site, found in held.items():
            assert found
            try:
                delta = ReceivedUpdate(_read(found[1]), like, self._federation.exchange.update)
                turn.updates.append(Update(site, delta, int(wanted[site]["cases"]), squares=delta.squares))
            except FederationError as error:
                refused[site] = str(error)
        memory = RunState({}, lengths=self._lengths)
        layout = WeightLayout(like, frozenset(like), parameters)
        kept = UpdateIntake(self._federation, layout, (), {}, _unrecorded).without_outliers(turn, memory)
        self._lengths = memory.lengths
        refused |= turn.refused
        if not kept:
            raise FederationError(f"no update that counts: {'; '.join(f'{s}: {r}' for s, r in refused.items())}")
        zeros = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in like.items()}
        mean = FedAvg(FedAvg.Settings(), parameters).aggregate(zeros, kept, len(kept))
        with self._lock:
            self._held = {digest: (of, sent) for digest, (of, sent) in self._held.items() if of > number}
        return PeerMean(mean, sum(update.cases for update in kept), [], refused)

    def _receive(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Hold what a peer sends; whose it is follows from the digest that the peer told the server."""
        del topic, fl_ctx
        number, sent = request.get(_ROUND), request.get(_UPDATE)
        if not isinstance(number, int) or not isinstance(sent, bytes):
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        self._hold(number, sent)
        return make_reply(ReturnCode.OK)

    def _hold(self, number: int, sent: bytes) -> str:
        digest = hashlib.sha256(sent).hexdigest()
        with self._lock:
            self._held[digest] = (number, sent)
            while len(self._held) > _MOST_HELD:
                del self._held[min(self._held, key=lambda held: self._held[held][0])]
        return digest


@dataclass(frozen=True)
class PeerMean:
    """What a collector made of a round.

    Attributes:
        mean: of the updates, by name; empty where some are missing.
        cases: behind it.
        missing: sites whose update did not arrive here, or was lost with an earlier process.
        refused: why an update was left out, by site.
    """

    mean: Weights
    cases: int
    missing: list[str]
    refused: dict[str, str]


def _read(sent: bytes) -> Weights:
    try:
        return load(sent)
    except (SafetensorError, ValueError, KeyError) as error:
        raise FederationError("it sent what is not tensors") from error


def _unrecorded(kind: str, **values: Any) -> None:
    """Tell nobody: the server records what its collector answers."""
