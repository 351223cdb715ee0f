"""Storage SCP: receives images by C-STORE (DICOM PS3.4, PS3.8).

The port is exposed to unauthenticated peers: lengths are bounded, data go to disk rather than memory, and nothing a
peer sends becomes part of a path or of printed text unchecked.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseServer
from typing import Any, Protocol, TypeVar

import pydicom.uid
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import Verification
from pynetdicom.transport import AddressInformation, AssociationSocket, RequestHandler, ThreadedAssociationServer

from oncofed.errors import SpecError, one_line
from oncofed.loopback import is_loopback
from oncofed.prediction.watching.application_entity import Address, Notify, RateLimitedNotify
from oncofed.prediction.watching.inbox import (
    NOT_THAT_CLASS,
    NOT_UNDERSTOOD,
    SUCCESS,
    StoreRefused,
)

# Images that our reader supports: cross-sections, projections, photographs and whole slides.
IMAGE_CLASSES: tuple[UID, ...] = tuple(
    getattr(pydicom.uid, f"{name}Storage")
    for name in (
        "CTImage",
        "EnhancedCTImage",
        "LegacyConvertedEnhancedCTImage",
        "MRImage",
        "EnhancedMRImage",
        "EnhancedMRColorImage",
        "LegacyConvertedEnhancedMRImage",
        "PositronEmissionTomographyImage",
        "EnhancedPETImage",
        "LegacyConvertedEnhancedPETImage",
        "NuclearMedicineImage",
        "ComputedRadiographyImage",
        "XRayRadiofluoroscopicImage",
        "XRayAngiographicImage",
        "BreastTomosynthesisImage",
        "UltrasoundImage",
        "SecondaryCaptureImage",
        "VLEndoscopicImage",
        "VLMicroscopicImage",
        "VLPhotographicImage",
        "OphthalmicPhotography8BitImage",
        "VLWholeSlideMicroscopyImage",
    )
) + tuple(
    getattr(pydicom.uid, f"{name}{purpose}")
    for name in ("DigitalXRayImageStorage", "DigitalMammographyXRayImageStorage", "DigitalIntraOralXRayImageStorage")
    for purpose in ("ForPresentation", "ForProcessing")
)
# Includes unidentified peers. pynetdicom's own limit also counts connections that have ended.
_MOST_CONNECTIONS, _NO_LIMIT = 20, 10_000
# Longest PDU announced, and accepted: an association request may be longer than a data PDU.
_ANNOUNCED_PDU, _LONGEST_PDU = 128 << 10, 1 << 20
_LONGEST_COMMAND = 64 << 10
# Unstored objects per association: an honest sender waits for each response.
_MOST_WAITING = 4
_NETWORK_SECONDS, _NEGOTIATION_SECONDS = 60.0, 10.0
_LONGEST_TITLE = 16
# Event of the state machine (PS3.8, section 9.2) for an invalid PDU: aborts the association.
_INVALID_PDU = "Evt19"


def decodable_syntaxes() -> list[UID]:
    """Return the transfer syntaxes that can be decoded here.

    Deflated data are excluded: one megabyte may expand to a gigabyte when read.
    """
    plain = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
    return plain + [s for s in AllTransferSyntaxes if s.is_compressed and _is_decodable(s)]


def _is_decodable(syntax: UID) -> bool:
    if syntax == DeflatedExplicitVRLittleEndian:
        return False
    with contextlib.suppress(NotImplementedError):
        return get_decoder(syntax).is_available
    return False


@dataclass
class _AssociationState:
    """State of an open association.

    Attributes:
        name: random, identifies the association in the inbox.
        peer: calling AE title, safe to print.
        series: folders that received objects.
        kept: number of stored objects.
        refused: status -> number of refused objects.
        released: whether it was released properly.
        incoming: objects being received or stored.
    """

    name: str
    peer: str = ""
    series: set[Path] = field(default_factory=set)
    released: bool = False
    kept: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    incoming: list[StoredObject] = field(default_factory=list)


class StoredObject(Protocol):
    """What a received object is written to: pynetdicom takes it for a temporary file.

    Attributes:
        path: of its file.
        sop_class: as announced.
    """

    path: Path
    sop_class: str

    @property
    def name(self) -> str:
        """Path of the file, which pynetdicom removes if left."""
        ...

    @property
    def file(self) -> object:
        """What pynetdicom flushes."""
        ...

    def write(self, data: bytes) -> None:
        """Append received bytes."""
        ...

    def flush(self) -> None:
        """Do nothing."""
        ...

    def close(self) -> None:
        """Close the file, as pynetdicom does once the object was stored."""
        ...

    def discard(self) -> None:
        """Remove the file, unless it was stored."""
        ...


_Object = TypeVar("_Object", bound=StoredObject)


class ObjectStore(Protocol[_Object]):
    """Where received objects are stored, such as an inbox."""

    def begin(self, sop_class: str, instance: str, syntax: str) -> _Object:
        """Open a temporary file for an incoming object."""
        ...

    def keep(self, incoming: _Object, association: str) -> Path:
        """Store a complete object; return the folder of its series.

        Raises:
            StoreRefused: it is not stored.
        """
        ...

    def settle(self, series: Path, alive: Iterable[str]) -> None:
        """Mark a series complete after its association was released."""
        ...


class StorageSCP:
    """Receives images from known AE titles into an inbox.

    Use as a context manager.

    Args:
        inbox: where images are stored.
        address: to listen on; port 0: any free port.
        ae_title: called AE title; associations that call another are rejected.
        callers: AE titles allowed to send.
        notify: called with each event's kind and a line that names no patient.
        classes: SOP classes that are received.
        tls: of its connections; None: they are not encrypted.
    """

    def __init__(
        self,
        inbox: ObjectStore[Any],
        address: Address,
        ae_title: str,
        callers: Sequence[str],
        notify: Notify,
        classes: Sequence[UID] = IMAGE_CLASSES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._classes, self._tls = classes, tls
        self._inbox, self._address, self._notify = inbox, address, notify
        self._notify_limited = RateLimitedNotify(notify)
        self._title, self._callers = ae_title, list(callers)
        self._associations: dict[Association, _AssociationState] = {}
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """Port that it listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def __enter__(self) -> StorageSCP:
        """Start listening.

        Raises:
            SpecError: the address cannot be bound.
        """
        # pynetdicom logs received data unescaped, and stack traces; ``notify`` reports the relevant events.
        logging.getLogger("pynetdicom").propagate = False
        entity = AE(self._title)
        entity.require_calling_aet = self._callers
        entity.require_called_aet = True
        entity.maximum_associations = _NO_LIMIT
        entity.maximum_pdu_size = _ANNOUNCED_PDU
        entity.network_timeout, entity.acse_timeout = _NETWORK_SECONDS, _NEGOTIATION_SECONDS
        entity.add_supported_context(Verification)
        syntaxes = decodable_syntaxes()
        for image in self._classes:
            entity.add_supported_context(image, syntaxes)
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_RELEASED, self._released),
        ]
        try:
            self._server = entity.make_server(
                AddressInformation(self._address.host, self._address.port).as_tuple,
                evt_handlers=handlers,
                ssl_context=self._tls,
                server_class=_Server,
                request_handler=functools.partial(_Connection, receiver=self),
            )
        except OSError as error:
            raise SpecError(
                f"nothing can listen at {self._address}: {error.strerror or error}. Name another port with --listen"
            ) from None
        threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True).start()
        place, callers = Address(self._address.host, self.port), ", ".join(self._callers)
        beyond = (
            "" if is_loopback(place.host) or self._tls else ". Other machines reach it: what they send is not encrypted"
        )
        self._notify("listening", f"{self._title} listens at {place} for {callers}{beyond}")
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop listening and abort open associations."""
        assert self._server is not None
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort(block=False)
        self._server = None

    def serve_association(self, association: Association, serve: Callable[[], None]) -> None:
        """Serve an association and clean up after it.

        Args:
            association: its peer may be unidentified yet.
            serve: blocks until the association ends.
        """
        state = self._associations[association] = _AssociationState(secrets.token_hex(8))
        try:
            serve()
        finally:
            association.dul.kill_dul()
            for incoming in state.incoming:
                incoming.discard()
            with self._lock:
                del self._associations[association]
            if state.series and not state.released:
                self._notify_limited(
                    "incomplete",
                    f"{state.peer} broke off after {_counts_text(state)}: "
                    "they wait until an association brings the rest",
                )

    def begin(self, association: Association, message: DIMSEMessage) -> StoredObject | None:
        """Open a file for an announced object; None: invalid announcement."""
        state, context = self._associations[association], association._accepted_cx.get(message.context_id or 0)
        announced = message.command_set
        sop_class, instance = (announced.get(name) for name in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"))
        state.incoming = [incoming for incoming in state.incoming if incoming.path.exists()]
        if context is None or not sop_class or not instance or len(state.incoming) >= _MOST_WAITING:
            return None
        incoming: StoredObject = self._inbox.begin(str(sop_class), str(instance), str(context.transfer_syntax[0]))
        state.incoming.append(incoming)
        return incoming

    def _store(self, event: Event) -> int:
        state, incoming = self._associations[event.assoc], event.request._dataset_file
        try:
            if incoming is None:
                raise StoreRefused(NOT_UNDERSTOOD, "it holds no data set")
            if event.context.abstract_syntax != incoming.sop_class:
                raise StoreRefused(NOT_THAT_CLASS, "it is not of the class that was agreed on")
            series = self._inbox.keep(incoming, state.name)
        except StoreRefused as refusal:
            state.refused[refusal.status] += 1
            if state.refused[refusal.status] == 1:
                self._notify_limited("refused", f"an object from {state.peer} is refused: {refusal}")
            return refusal.status
        state.series.add(series)
        state.kept += 1
        return SUCCESS

    def _accepted(self, event: Event) -> None:
        self._associations[event.assoc].peer = _calling_ae_title(event.assoc)

    def _rejected(self, event: Event) -> None:
        association = event.assoc
        called = one_line(str(association.requestor.primitive.called_ae_title), _LONGEST_TITLE)
        why = f"it calls {called}, and this is {self._title} (--ae-title)"
        if _calling_ae_title(association) not in self._callers:
            why = "it is none of those who may send (--from)"
        host = association.requestor.address_info.address
        self._notify_limited("rejected", f"{_calling_ae_title(association)} at {host} is turned away: {why}")

    def _released(self, event: Event) -> None:
        state = self._associations[event.assoc]
        state.released = True
        with self._lock:
            alive = [other.name for other in self._associations.values() if other is not state]
        for series in state.series:
            self._inbox.settle(series, alive)
        if state.kept or state.refused:
            self._notify("received", f"{state.peer} sent {_counts_text(state)}")


class _Server(ThreadedAssociationServer):
    """pynetdicom's server, without its own shutdown of associations."""

    def shutdown(self) -> None:
        """Stop listening."""
        BaseServer.shutdown(self)
        self.server_close()


class _Connection(RequestHandler):
    """Connection with limits that apply before the peer identifies itself."""

    def __init__(self, request: Any, client_address: Any, server: Any, receiver: StorageSCP) -> None:
        self._receiver = receiver
        super().__init__(request, client_address, server)

    def handle(self) -> None:
        """Serve the connection in its own thread."""
        if len(self.server.active_associations) >= _MOST_CONNECTIONS:
            self.request.close()
            return
        association = self._create_association()
        # A peer that stops within a message would otherwise block the thread for ever.
        self.request.settimeout(_NETWORK_SECONDS)
        # The original socket queued a connection event; the replacement below queues its own.
        association.dul.event_queue.get_nowait()
        association.dul.socket = _BoundedSocket(association, client_socket=self.request)
        association.dimse = StreamedMessages(association, self._receiver.begin)
        association.dul.daemon = True
        # Uncaught exceptions of threads are printed, with text from the peer in them.
        serve, exchange = association.run, association.dul.run
        association.run = _quietly(lambda: self._serve(association, serve))
        association.dul.run = _quietly(exchange)
        association.start()

    def _serve(self, association: Association, serve: Callable[[], None]) -> None:
        try:
            self._receiver.serve_association(association, serve)
        finally:
            self.request.close()


class _BoundedSocket(AssociationSocket):
    """Refuses messages longer than ``_LONGEST_PDU``.

    The length is the first field that a peer sends.
    """

    def recv(self, nr_bytes: int) -> bytearray:
        if nr_bytes > _LONGEST_PDU:
            raise OSError(f"a message of {nr_bytes} bytes")
        return bytearray(super().recv(nr_bytes))


class StreamedMessages(DIMSEServiceProvider):
    """Streams received objects to files and bounds all other memory.

    Args:
        association: whose messages it receives.
        begin: opens what an announced object is written to; None: it is not acceptable, and the association ends.
    """

    def __init__(
        self, association: Association, begin: Callable[[Association, DIMSEMessage], StoredObject | None]
    ) -> None:
        super().__init__(association)
        self._begin = begin

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Process received fragments; abort on invalid ones."""
        try:
            valid = all(self._take(value) for value in primitive.presentation_data_value_list)
        except Exception:  # noqa: BLE001 - bytes that are no message may raise anything
            valid = False
        if not valid:
            self.dul.event_queue.put(_INVALID_PDU)

    def _take(self, value: tuple[int, bytes]) -> bool:
        """Process one fragment and return whether it is acceptable."""
        part = P_DATA()
        part.presentation_data_value_list.append(value)
        super().receive_primitive(part)
        return self._is_valid()

    def _is_valid(self) -> bool:
        message = self.message
        if message is None:
            return True
        if isinstance(message, C_STORE_RQ) and message._data_set_file is None:
            message._data_set_file = self._begin(self.assoc, message)
            return message._data_set_file is not None
        in_memory = message.encoded_command_set.tell() + (message.data_set.tell() if message.data_set else 0)
        return bool(in_memory <= _LONGEST_COMMAND)


def _quietly(run: Callable[[], None]) -> Callable[[], None]:
    def guarded() -> None:
        with contextlib.suppress(Exception):
            run()

    return guarded


def _calling_ae_title(association: Association) -> str:
    return one_line(str(association.requestor.primitive.calling_ae_title), _LONGEST_TITLE)


def _counts_text(state: _AssociationState) -> str:
    images, series = ("image" if state.kept == 1 else "images"), len(state.series)
    refused = f", {state.refused.total()} refused" if state.refused else ""
    return f"{state.kept} {images} of {series} series{refused}"
