"""How FLARE's messages say that their tensors go another way."""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import nvflare.fuel.utils.app_config_utils as acu
from nvflare.apis.fl_constant import ConfigVarName
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.app_opt.pt.tensor_downloader import TensorDownloadable
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.f3.streaming import cacheable, download_service
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.datum import Datum, DatumManager
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.flare.transfer.client import TransferClient
from oncofed.flare.transfer.codec import travels
from oncofed.flare.transfer.protocol import context_of
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights

# Models of less than this are there sooner within FLARE's messages. Without direct connections those of less than the
# second are, too; larger ones FLARE fetches in chunks.
SMALLEST_BYTES, LARGEST_WHOLE_BYTES = 4 << 20, 32 << 20
_CARRIER = "oncofed.carrier"
_DIRECT = "direct"
_OBJECTS = "objects"
_NATIVE = "native"
_SETTLE_SECONDS = 10.0


class Carrier(Protocol):
    """An end of direct connections: a site's ``TransferClient``, or the server's ``TransferServer``."""

    def offer(self, ref: str, tensors: Mapping[str, Tensor], abort: Any = None) -> None:
        """Let the other end have tensors under a name."""

    def collect(self, origin: str, ref: str, abort: Any = None) -> Weights | None:
        """Return what the other end let this one have; None: FLARE is to move it."""

    def withdraw(self, ref: str) -> None:
        """Let nobody have something any more."""

    def close(self) -> None:
        """End."""


def carry(cell: Cell, carrier: Carrier) -> None:
    """Have the tensors of a process's messages go by a carrier."""
    cell.update_fobs_context({_CARRIER: carrier})


def carry_no_more(cell: Cell | None) -> None:
    """End the carrier of a process, where it has one."""
    carrier: Carrier | None = cell.get_fobs_context().get(_CARRIER) if cell else None
    if cell and carrier:
        cell.update_fobs_context({_CARRIER: None})
        carrier.close()


class DirectTensors(TensorDecomposer):
    """FLARE's way with tensors, but that those which are large go by the process's carrier, where it has one.

    FLARE puts a reference into a message, and whoever receives it asks for the tensors piece by piece. The reference
    stays, and so does what it stands for: where the other way fails, FLARE's is gone.
    """

    def decompose(self, target: Any, manager: DatumManager | None = None) -> Any:
        """Return a tensor as it stands in a message: whole, where FLARE would fetch all of them in one chunk."""
        chunk = acu.get_int_var(self._config_var_name(ConfigVarName.DOWNLOAD_CHUNK_SIZE), self.max_chunk_size)
        if manager and chunk >= LARGEST_WHOLE_BYTES and not manager.fobs_ctx.get(_CARRIER):
            manager.fobs_ctx[_NATIVE] = True
        return super().decompose(target, manager)

    def native_decompose(self, target: Tensor, manager: DatumManager | None = None) -> bytes:
        """Return a tensor as it stands whole in a message: in FLARE's form, which its library takes longer to write."""
        if not travels(target):
            return bytes(super().native_decompose(target, manager))
        return b"".join(Serialized({"t": target}).parts())

    def to_downloadable(self, items: dict[str, Tensor], max_chunk_size: int, fobs_ctx: dict[str, Any]) -> Any:
        """Return tensors as FLARE offers them."""
        return _Offered(items, max_chunk_size, fobs_ctx.get(_CARRIER))

    def _create_datum(self, fobs_ctx: dict[str, Any]) -> Datum:
        datum = super()._create_datum(fobs_ctx)
        ref, offered = fobs_ctx[_OBJECTS][-1]
        if offered.carrier:
            offered.ref = ref
            datum.value = json.dumps({**json.loads(datum.value), _DIRECT: True})
        return datum

    def _finalize_download_tx(self, mgr: DatumManager) -> None:
        for _, offered in mgr.fobs_ctx.get(_OBJECTS) or ():
            if isinstance(offered, _Offered) and offered.carrier:
                offered.carrier.offer(offered.ref, offered.base_obj, mgr.fobs_ctx.get(fobs.FOBSContextKey.ABORT_SIGNAL))
        super()._finalize_download_tx(mgr)

    def _download_from_remote_cell(self, fobs_ctx: dict[str, Any], ref: dict[str, Any]) -> Any:
        carrier: Carrier | None = fobs_ctx.get(_CARRIER)
        if carrier and ref.get(_DIRECT):
            abort = fobs_ctx.get(fobs.FOBSContextKey.ABORT_SIGNAL)
            tensors = carrier.collect(str(ref["fqcn"]), str(ref["ref_id"]), abort)
            if tensors is not None:
                _settle(fobs_ctx[fobs.FOBSContextKey.CELL], str(ref["fqcn"]), str(ref["ref_id"]), abort)
                return tensors
        return super()._download_from_remote_cell(fobs_ctx, ref)


class _Offered(TensorDownloadable):
    """Tensors that are offered in both ways.

    Args:
        tensors: by name.
        largest_chunk: bytes that FLARE moves at once.
        carrier: of the process.

    Attributes:
        carrier: by which they go; None: they go as FLARE's do.
        ref: their name.
    """

    def __init__(self, tensors: dict[str, Tensor], largest_chunk: int, carrier: Carrier | None) -> None:
        super().__init__(tensors, largest_chunk)
        is_large = sum(value.nbytes for value in tensors.values()) >= SMALLEST_BYTES
        self.carrier = carrier if is_large and all(map(travels, tensors.values())) else None
        self.ref = ""

    def release(self) -> None:
        """Offer them no longer: everybody has them, or time is up."""
        if self.carrier:
            self.carrier.withdraw(self.ref)
        super().release()


def _settle(cell: Cell, origin: str, ref: str, abort: Any) -> None:
    """Tell who offered something in FLARE's way that it is here, in the words of a receiver of its last piece.

    Where that is not heard, FLARE withdraws it some minutes later.
    """
    keys = download_service._PropKey
    end = {cacheable._StateKey.START: sys.maxsize, cacheable._StateKey.COUNT: 0}
    last = _ask(cell, origin, {keys.REF_ID: ref, keys.STATE: end, keys.CONFIRM_CAPABLE: True}, abort)
    if last.get(keys.CONFIRM_EXPECTED):
        success, nonce = download_service.DownloadStatus.SUCCESS, last.get(keys.CONFIRM_NONCE)
        _ask(cell, origin, {keys.REF_ID: ref, keys.CONFIRM: success, keys.CONFIRM_NONCE: nonce}, abort)


def _ask(cell: Cell, origin: str, question: dict[str, Any], abort: Any) -> dict[str, Any]:
    """Return what FLARE's service for tensors answers; nothing where it does not."""
    reply = cell.send_request(
        channel=download_service.OBJ_DOWNLOADER_CHANNEL,
        target=origin,
        topic=download_service.OBJ_DOWNLOADER_TOPIC,
        request=new_cell_message(headers={}, payload=question),
        timeout=_SETTLE_SECONDS,
        optional=True,
        abort_signal=abort,
    )
    agreed = reply.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK and isinstance(reply.payload, dict)
    return reply.payload if agreed else {}


def context_of_cell(cell: Cell | None, job_id: str, server: bool) -> ssl.SSLContext | None:
    """Return how a process speaks TLS directly; None: it does not, as in a simulation."""
    credentials = cell.get_fobs_context().get(fobs.FOBSContextKey.SEC_CREDS) if cell else None
    if not cell or not credentials or not cell.core_cell.secure or sys.platform != "linux":
        return None
    with contextlib.suppress(FederationError):
        return context_of(credentials, job_id, server)
    return None


def transfer_client_of(cell: Cell | None, job_id: str) -> TransferClient | None:
    """Return a site's end of direct connections for a job; None: there are none, as behind a relay."""
    context = context_of_cell(cell, job_id, server=False)
    if not cell or not context:
        return None
    address = urlsplit(cell.core_cell.root_url or "")
    if not address.hostname or not address.port:
        return None
    server = cell.core_cell.identity_resolver.resolve(FQCN.ROOT_SERVER)
    return TransferClient((address.hostname, address.port), context, str(server), job_id)
