"""Take large tensors out of FLARE's messages."""

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

from oncofed.errors import TransferError
from oncofed.flare.transfer.client import TransferClient
from oncofed.flare.transfer.codec import travels
from oncofed.flare.transfer.protocol import tls_context
from oncofed.models.serialized import Serialized
from oncofed.models.weights import Weights

# Smaller models arrive sooner within FLARE's messages. Without direct connections this holds up to the second size;
# FLARE fetches larger ones in chunks.
SMALLEST_BYTES, LARGEST_WHOLE_BYTES = 4 << 20, 32 << 20
_TRANSFER = "oncofed.transfer"
_DIRECT = "direct"
_OBJECTS = "objects"
_NATIVE = "native"
_CONFIRM_SECONDS = 10.0


class Transfer(Protocol):
    """An end of direct connections: ``TransferClient`` or ``TransferServer``."""

    def publish(self, ref: str, tensors: Mapping[str, Tensor], abort: Any = None) -> None:
        """Give the other end tensors under a name."""

    def fetch(self, origin: str, ref: str, abort: Any = None) -> Weights | None:
        """Return what the other end published; None: FLARE moves it."""

    def withdraw(self, ref: str) -> None:
        """Publish it no longer."""

    def close(self) -> None:
        """End."""


def begin_transfer(cell: Cell, transfer: Transfer) -> None:
    """Send the large tensors of a process's messages directly."""
    cell.update_fobs_context({_TRANSFER: transfer})


def end_transfer(cell: Cell | None) -> None:
    """Close a process's direct connections, if it has any."""
    transfer: Transfer | None = cell.get_fobs_context().get(_TRANSFER) if cell else None
    if cell and transfer:
        cell.update_fobs_context({_TRANSFER: None})
        transfer.close()


class DirectTensors(TensorDecomposer):
    """FLARE's decomposer, but large tensors are transferred directly.

    FLARE puts a reference into a message, and the receiver fetches the tensors in chunks. The reference is kept, and
    so are the tensors behind it: if the direct transfer fails, FLARE's is used.
    """

    def decompose(self, target: Any, manager: DatumManager | None = None) -> Any:
        """Return a tensor for a message: whole, or a reference."""
        chunk = acu.get_int_var(self._config_var_name(ConfigVarName.DOWNLOAD_CHUNK_SIZE), self.max_chunk_size)
        if manager and chunk >= LARGEST_WHOLE_BYTES and not manager.fobs_ctx.get(_TRANSFER):
            manager.fobs_ctx[_NATIVE] = True
        return super().decompose(target, manager)

    def native_decompose(self, target: Tensor, manager: DatumManager | None = None) -> bytes:
        """Return a tensor's bytes as FLARE does, but faster."""
        if not travels(target):
            return bytes(super().native_decompose(target, manager))
        return b"".join(Serialized({"t": target}).parts())

    def to_downloadable(self, items: dict[str, Tensor], max_chunk_size: int, fobs_ctx: dict[str, Any]) -> Any:
        """Return tensors as FLARE publishes them."""
        return _Published(items, max_chunk_size, fobs_ctx.get(_TRANSFER))

    def _create_datum(self, fobs_ctx: dict[str, Any]) -> Datum:
        datum = super()._create_datum(fobs_ctx)
        ref, published = fobs_ctx[_OBJECTS][-1]
        if published.transfer:
            published.ref = ref
            datum.value = json.dumps({**json.loads(datum.value), _DIRECT: True})
        return datum

    def _finalize_download_tx(self, mgr: DatumManager) -> None:
        abort = mgr.fobs_ctx.get(fobs.FOBSContextKey.ABORT_SIGNAL)
        for _, published in mgr.fobs_ctx.get(_OBJECTS) or ():
            if isinstance(published, _Published) and published.transfer:
                published.transfer.publish(published.ref, published.base_obj, abort)
        super()._finalize_download_tx(mgr)

    def _download_from_remote_cell(self, fobs_ctx: dict[str, Any], ref: dict[str, Any]) -> Any:
        transfer: Transfer | None = fobs_ctx.get(_TRANSFER)
        if transfer and ref.get(_DIRECT):
            abort = fobs_ctx.get(fobs.FOBSContextKey.ABORT_SIGNAL)
            tensors = transfer.fetch(str(ref["fqcn"]), str(ref["ref_id"]), abort)
            if tensors is not None:
                _confirm(fobs_ctx[fobs.FOBSContextKey.CELL], str(ref["fqcn"]), str(ref["ref_id"]), abort)
                return tensors
        return super()._download_from_remote_cell(fobs_ctx, ref)


class _Published(TensorDownloadable):
    """Tensors that can be fetched directly and through FLARE.

    Args:
        tensors: by name.
        max_chunk_size: bytes that FLARE moves at once.
        transfer: of the process.

    Attributes:
        transfer: that they use; None: FLARE only.
        ref: their name.
    """

    def __init__(self, tensors: dict[str, Tensor], max_chunk_size: int, transfer: Transfer | None) -> None:
        super().__init__(tensors, max_chunk_size)
        is_large = sum(value.nbytes for value in tensors.values()) >= SMALLEST_BYTES
        self.transfer = transfer if is_large and all(map(travels, tensors.values())) else None
        self.ref = ""

    def release(self) -> None:
        """Withdraw them once all have them, or at the timeout."""
        if self.transfer:
            self.transfer.withdraw(self.ref)
        super().release()


def _confirm(cell: Cell, origin: str, ref: str, abort: Any) -> None:
    """Confirm to FLARE's download service that tensors arrived.

    It sends the reply of a receiver of the last chunk. If that is lost, FLARE withdraws the tensors some minutes later.
    """
    keys = download_service._PropKey
    end = {cacheable._StateKey.START: sys.maxsize, cacheable._StateKey.COUNT: 0}
    last = _request(cell, origin, {keys.REF_ID: ref, keys.STATE: end, keys.CONFIRM_CAPABLE: True}, abort)
    if last.get(keys.CONFIRM_EXPECTED):
        success, nonce = download_service.DownloadStatus.SUCCESS, last.get(keys.CONFIRM_NONCE)
        _request(cell, origin, {keys.REF_ID: ref, keys.CONFIRM: success, keys.CONFIRM_NONCE: nonce}, abort)


def _request(cell: Cell, origin: str, payload: dict[str, Any], abort: Any) -> dict[str, Any]:
    """Return the download service's reply, empty if it is lost."""
    reply = cell.send_request(
        channel=download_service.OBJ_DOWNLOADER_CHANNEL,
        target=origin,
        topic=download_service.OBJ_DOWNLOADER_TOPIC,
        request=new_cell_message(headers={}, payload=payload),
        timeout=_CONFIRM_SECONDS,
        optional=True,
        abort_signal=abort,
    )
    accepted = reply.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK and isinstance(reply.payload, dict)
    return reply.payload if accepted else {}


def cell_tls_context(cell: Cell | None, job_id: str, server: bool) -> ssl.SSLContext | None:
    """Return a process's TLS settings; None in a simulation."""
    credentials = cell.get_fobs_context().get(fobs.FOBSContextKey.SEC_CREDS) if cell else None
    if not cell or not credentials or not cell.core_cell.secure or sys.platform != "linux":
        return None
    with contextlib.suppress(TransferError):
        return tls_context(credentials, job_id, server)
    return None


def new_transfer_client(cell: Cell | None, job_id: str) -> TransferClient | None:
    """Return a site's client; None behind a relay."""
    context = cell_tls_context(cell, job_id, server=False)
    if not cell or not context:
        return None
    address = urlsplit(cell.core_cell.root_url or "")
    if not address.hostname or not address.port:
        return None
    server = cell.core_cell.identity_resolver.resolve(FQCN.ROOT_SERVER)
    return TransferClient((address.hostname, address.port), context, server=str(server), job_id=job_id)
