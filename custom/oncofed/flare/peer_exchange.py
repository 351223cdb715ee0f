"""Swarm learning: each round one site averages its peers' updates.

The server sees no site's update. Peers send each other their updates over the alliance's connections, encrypted from
site to site: the server relays what it cannot read (Warnat-Herresthal et al., Nature 2021). Unlike in FLARE's swarm
workflow the server still leads the rounds, so that quorum, deadline, lost sites, model selection and restarts are those
of every algorithm.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping

import torch
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from oncofed.algorithms import Update
from oncofed.algorithms.fedavg import FedAvg
from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import UpdateRejectedError
from oncofed.flare.transfer.protocol import message_timeout
from oncofed.messages.compression import ReceivedUpdate
from oncofed.messages.requests import CombineRequest
from oncofed.messages.results import CombineResult
from oncofed.models.weights import WeightLayout, Weights
from oncofed.rounds.outliers import OutlierFilter

_TOPIC = "oncofed.peer"
_UPDATE = "update"
_ROUND = "round"
# A job has no more sites.
_MOST_HELD = 1000


class PeerExchange(FLComponent):
    """Sends updates to the round's collector, or averages them.

    Args:
        federation: the job's rules.
    """

    def __init__(self, federation: FederationPlan) -> None:
        super().__init__()
        self._federation = federation
        self._lock = threading.Lock()
        self._held: dict[str, tuple[int, bytes]] = {}  # digest -> round, update
        self._lengths: list[list[float]] = []

    def listen(self, fl_ctx: FLContext) -> None:
        """Receive updates of peers from now on."""
        fl_ctx.get_engine().register_aux_message_handler(topic=_TOPIC, message_handle_func=self._receive)

    def send(self, update: Mapping[str, Tensor], number: int, collector: str, fl_ctx: FLContext) -> str | None:
        """Send an update to the round's collector.

        Returns:
            The digest by which the server names it; None: it did not arrive.
        """
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

    def combine(self, request: CombineRequest, layout: WeightLayout) -> CombineResult:
        """Return the mean of updates, weighted by cases.

        Args:
            request: of the server: digest of each site's update, and cases behind it, as that site reported them.
            layout: of the model.

        Raises:
            UpdateRejectedError: no usable update is left.
        """
        with self._lock:
            held = {site: self._held.get(update.digest) for site, update in request.updates.items()}
        missing = sorted(site for site, found in held.items() if found is None)
        if missing:
            return CombineResult(mean={}, cases=0, missing=missing)
        like, updates, refused = layout.sent, list[Update](), {}
        for site, found in held.items():
            assert found
            try:
                delta = ReceivedUpdate(_read(found[1]), like, self._federation.exchange.update)
                cases = int(request.updates[site].cases)
                updates.append(Update(site, delta, cases, squares=delta.squares))
            except UpdateRejectedError as error:
                refused[site] = str(error)
        screened = OutlierFilter(self._federation.exchange, layout.trained).screen(updates, self._lengths)
        kept, self._lengths = screened.kept, screened.lengths
        refused |= screened.refused
        if not kept:
            raise UpdateRejectedError(f"no update that counts: {'; '.join(f'{s}: {r}' for s, r in refused.items())}")
        zeros = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in like.items()}
        mean = FedAvg(FedAvg.Settings(), layout.trained).aggregate(zeros, kept, len(kept))
        self._forget(request.round)
        return CombineResult(mean=mean, cases=sum(update.cases for update in kept), left_out=refused)

    def _receive(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """Hold a peer's update.

        Its digest, which that peer reported to the server, identifies it.
        """
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

    def _forget(self, number: int) -> None:
        """Release updates up to a round."""
        with self._lock:
            self._held = {digest: (of, sent) for digest, (of, sent) in self._held.items() if of > number}


def _read(sent: bytes) -> Weights:
    try:
        return load(sent)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UpdateRejectedError("it sent what is not tensors") from error
