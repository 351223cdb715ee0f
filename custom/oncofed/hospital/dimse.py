"""An archive that speaks DICOM's own protocol: C-FIND, C-GET, C-MOVE and C-STORE (PS3.4, annexes B and C)."""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom.uid
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.events import Event
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from oncofed.errors import OncofedError, SpecError, TransferError
from oncofed.hospital.archive import (
    AccessRefusedError,
    ArchiveAwayError,
    Arriving,
    Begin,
    Instance,
    Series,
    Stopped,
    Study,
)
from oncofed.hospital.settings import DimseSettings, TlsSettings, tls_context
from oncofed.prediction.watching.application_entity import Address, ApplicationEntity, parse_address
from oncofed.prediction.watching.inbox import NOT_UNDERSTOOD, OUT_OF_RESOURCES, SUCCESS, StoreRefused
from oncofed.prediction.watching.storage_scp import IMAGE_CLASSES, StorageSCP, StreamedMessages, decodable_syntaxes
from oncofed.prediction.watching.store_scu import RequestorMessages, SendStatus, send

_CONNECT_SECONDS, _ANSWER_SECONDS, _SILENCE_SECONDS = 10.0, 120.0, 120.0
_LARGEST_PDU = 128 << 10
_MOST_CONTEXTS = 128  # PS3.8, section 9.3.2.2: odd numbers of one byte
_UIDS_AT_ONCE = 100
_UID = re.compile(r"[0-9.]{1,64}")
_CLASSES = (
    *IMAGE_CLASSES,
    *(
        getattr(pydicom.uid, f"{name}Storage")
        for name in ("Segmentation", "LabelMapSegmentation", "RTStructureSet", "RTDose", "RTPlan")
        if hasattr(pydicom.uid, f"{name}Storage")
    ),
    pydicom.uid.ComprehensiveSRStorage,
    pydicom.uid.EnhancedSRStorage,
)
_PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_REFUSED = (0x0122, 0x0124, 0xA900)  # PS3.7, annex C; PS3.4, table C.4-3
_PERSON = ("PatientName", "PatientBirthDate", "PatientSex")


class DimseArchive:
    """Associations with an archive, of one thread.

    Args:
        settings: of ``pacs.yaml``.
        receiver: where moved images arrive; None: they are got.
    """

    def __init__(self, settings: DimseSettings, receiver: MoveReceiver | None = None) -> None:
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it logs identifiers that were asked for
        self._settings, self._receiver = settings, receiver
        self._tls = tls_context(settings.tls) if settings.tls else None
        self._finding: Association | None = None

    def close(self) -> None:
        """End the association."""
        finding, self._finding = self._finding, None
        if finding and finding.is_established:
            finding.release()

    def studies(self, keys: Mapping[str, str]) -> list[Study]:
        """Return the studies that match."""
        asked = {**dict.fromkeys(("StudyInstanceUID", "PatientID", "AccessionNumber", *_PERSON), ""), **keys}
        studies = []
        for found in self._find("STUDY", asked):
            person = tuple(_text(found, keyword) for keyword in _PERSON)
            studies.append(
                Study(
                    _text(found, "StudyInstanceUID"),
                    _text(found, "PatientID"),
                    _text(found, "AccessionNumber"),
                    person if all(person) else (),
                )
            )
        return [study for study in studies if _UID.fullmatch(study.uid)]

    def series(self, study: Study) -> list[Series]:
        """Return a study's series."""
        wanted = ("SeriesInstanceUID", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")
        series = []
        for found in self._find("SERIES", {"StudyInstanceUID": study.uid, **dict.fromkeys(wanted, "")}):
            count = _text(found, "NumberOfSeriesRelatedInstances")
            uid, modality, description = (_text(found, keyword) for keyword in wanted[:3])
            series.append(Series(study, uid, modality, description, int(count) if count.isdecimal() else None))
        return [one for one in series if _UID.fullmatch(one.uid)]

    def instances(self, series: Series) -> list[Instance]:
        """Return a series' instances; none if it is gone."""
        asked = {"StudyInstanceUID": series.study.uid, "SeriesInstanceUID": series.uid}
        found = self._find("IMAGE", {**asked, "SOPInstanceUID": "", "SOPClassUID": ""})
        instances = [Instance(_text(one, "SOPInstanceUID"), _text(one, "SOPClassUID")) for one in found]
        return [one for one in instances if _UID.fullmatch(one.uid)]

    def fetch(self, series: Series, wanted: Sequence[Instance] | None, begin: Begin) -> None:
        """Fetch instances of a series; None: all of them."""
        above = {"StudyInstanceUID": series.study.uid, "SeriesInstanceUID": series.uid}
        if wanted is None:
            self._retrieve(_identifier("SERIES", above), None, begin)
            return
        for start in range(0, len(wanted), _UIDS_AT_ONCE):
            some = wanted[start : start + _UIDS_AT_ONCE]
            uids = [one.uid for one in some]
            self._retrieve(
                _identifier("IMAGE", {**above, "SOPInstanceUID": uids if len(uids) > 1 else uids[0]}),
                sorted({one.sop_class for one in some if one.sop_class}),
                begin,
            )

    def store(self, file: Path) -> None:
        """Store a DICOM file.

        Raises:
            TransferError: the archive does not take it.
        """
        peer = ApplicationEntity(self._settings.called, Address(self._settings.host, self._settings.port))
        (result,) = send([file], peer, self._settings.calling, self._tls)
        if result.sent is SendStatus.AWAY:
            raise ArchiveAwayError(f"the archive: {result.why}")
        if result.sent is not SendStatus.STORED:
            raise TransferError(f"the archive did not store it: {result.why}")

    def _find(self, level: str, keys: Mapping[str, str]) -> list[Dataset]:
        model = StudyRootQueryRetrieveInformationModelFind
        if self._finding is None or not self._finding.is_established:
            entity = self._entity()
            entity.add_requested_context(model)
            self._finding = self._associated(entity)
        found = []
        for status, values in self._finding.send_c_find(_identifier(level, keys), model):
            if "Status" not in status:
                self._finding = None
                raise ArchiveAwayError("the archive ended the connection, or did not answer in time")
            if status.Status in (0xFF00, 0xFF01):
                found += [values] if values is not None else []
            elif status.Status != SUCCESS:
                raise ArchiveAwayError(f"the archive refuses a search with status 0x{status.Status:04X}")
        return found

    def _retrieve(self, identifier: Dataset, classes: Sequence[str] | None, begin: Begin) -> None:
        if self._receiver:
            self._move(identifier, self._receiver, begin)
        else:
            self._get(identifier, classes, begin)

    def _move(self, identifier: Dataset, receiver: MoveReceiver, begin: Begin) -> None:
        model = StudyRootQueryRetrieveInformationModelMove
        entity = self._entity()
        entity.add_requested_context(model)
        receiver.arrivals.begin = begin
        association = self._associated(entity)
        try:
            _finish(
                association.send_c_move(identifier, self._settings.calling, model),
                receiver.arrivals,
                "move",
                association,
            )
        finally:
            _end(association)

    def _get(self, identifier: Dataset, classes: Sequence[str] | None, begin: Begin) -> None:
        """Get objects over the same association.

        Of many classes each is offered plain, or in any compression that the archive may choose. Of few classes each
        syntax is offered on its own, so that objects come as they are stored.
        """
        model = StudyRootQueryRetrieveInformationModelGet
        entity = self._entity()
        contexts = [build_context(model)]
        offered = [UID(one) for one in classes or _CLASSES]
        compressed = [syntax for syntax in decodable_syntaxes() if syntax.is_compressed]
        each = bool(classes) and len(offered) * (len(_PLAIN) + len(compressed)) < _MOST_CONTEXTS
        syntaxes = [[one] for one in [*_PLAIN, *compressed]] if each else [_PLAIN, compressed]
        contexts += [build_context(sop_class, some) for sop_class in offered for some in syntaxes]
        entity.requested_contexts = contexts[:_MOST_CONTEXTS]
        arrivals = _Arrivals(begin)
        association = self._associated(
            entity, [build_role(one, scp_role=True) for one in offered], [(evt.EVT_C_STORE, arrivals.store)]
        )
        association.dimse = _GotMessages(association, arrivals.announced)
        # Between two answers an object of gigabytes may arrive: silence on the network ends it, not time.
        association.dimse_timeout = None
        try:
            _finish(association.send_c_get(identifier, model), arrivals, "get", association)
        finally:
            _end(association)
            arrivals.discard()

    def _entity(self) -> AE:
        entity = AE(self._settings.calling)
        entity.maximum_pdu_size = _LARGEST_PDU
        entity.connection_timeout = entity.acse_timeout = _CONNECT_SECONDS
        entity.dimse_timeout, entity.network_timeout = _ANSWER_SECONDS, _SILENCE_SECONDS
        return entity

    def _associated(self, entity: AE, roles: Sequence[Any] = (), handlers: Sequence[Any] = ()) -> Association:
        settings = self._settings
        try:
            association = entity.associate(
                settings.host,
                settings.port,
                ae_title=settings.called,
                ext_neg=list(roles) or None,
                evt_handlers=list(handlers) or None,
                tls_args=(self._tls, settings.host) if self._tls else None,
            )
        except (OSError, ssl.SSLError) as error:
            raise ArchiveAwayError(f"the archive does not answer ({error.strerror or 'unknown host'})") from None
        if association.is_established:
            association.dimse = RequestorMessages(association)
            return association
        if association.is_rejected:
            raise AccessRefusedError(
                f"the archive turns {settings.calling} away: does it know this AE title, and is it called "
                f"{settings.called}? Have its administrator enter {settings.calling} with this machine's address"
            )
        if association.rejected_contexts:
            raise TransferError(
                f"the archive does not offer C-FIND and {settings.retrieve}: try dicomweb, or the other"
            )
        raise ArchiveAwayError("the archive does not answer" + (", or not with TLS" if self._tls else ""))


class _GotMessages(RequestorMessages, StreamedMessages):
    """Responses of a C-GET, and the objects that come between them."""


class _Arrivals:
    """Objects that a peer sends, and the first failure to keep one."""

    def __init__(self, begin: Begin | None = None) -> None:
        self.begin = begin
        self.failure: BaseException | None = None
        self._open: list[_Watched] = []

    def open(self, sop_class: str, instance: str, syntax: str) -> _Watched:
        """Open a file for an announced object."""
        if self.failure or self.begin is None:
            raise Stopped
        with self.watched():
            opened = _Watched(self.begin(sop_class, instance, syntax), self)
        self._open = [one for one in self._open if one.path.exists()] + [opened]
        return opened

    def announced(self, association: Association, message: DIMSEMessage) -> Arriving | None:
        """Open a file for the object that a C-STORE request announces."""
        context = association._accepted_cx.get(message.context_id or 0)
        values = message.command_set
        sop_class, instance = (values.get(name) for name in ("AffectedSOPClassUID", "AffectedSOPInstanceUID"))
        if context is None or not sop_class or not instance:
            return None
        return self.open(str(sop_class), str(instance), str(context.transfer_syntax[0]))

    def store(self, event: Event) -> int:
        """Keep an object that is complete; return the status of PS3.4, table B.2-1."""
        arriving = event.request._dataset_file
        if arriving is None:
            return NOT_UNDERSTOOD
        try:
            arriving.keep()
        except TransferError:
            return NOT_UNDERSTOOD
        except (Stopped, OncofedError, OSError):
            return OUT_OF_RESOURCES
        return SUCCESS

    def discard(self) -> None:
        """Remove what has arrived in part."""
        for one in self._open:
            one.discard()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Remember the first failure other than of the object itself."""
        try:
            yield
        except (Stopped, OncofedError, OSError) as error:
            if isinstance(error, ArchiveAwayError) or not isinstance(error, TransferError):
                self.failure = self.failure or error
            raise


class _Watched:
    """An object that arrives, whose failures are remembered."""

    def __init__(self, inner: Arriving, arrivals: _Arrivals) -> None:
        self._inner, self._arrivals = inner, arrivals
        self.path, self.sop_class, self.name = inner.path, inner.sop_class, inner.name
        self.flush, self.close, self.discard = inner.flush, inner.close, inner.discard

    @property
    def file(self) -> _Watched:
        """Itself: pynetdicom flushes the ``file`` of a temporary file."""
        return self

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with self._arrivals.watched():
            self._inner.write(data)

    def keep(self) -> None:
        """Keep the object, which is complete."""
        with self._arrivals.watched():
            self._inner.keep()


class MoveReceiver:
    """Where an archive sends what is moved to this machine's AE title.

    Use as a context manager.

    Args:
        settings: of ``pacs.yaml``.

    Raises:
        SpecError: it cannot listen, or has no certificate to listen with.
    """

    def __init__(self, settings: DimseSettings) -> None:
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
        self.arrivals = _Arrivals()
        self._server = StorageSCP(
            self,
            parse_address(settings.listen, "dimse.listen"),
            settings.calling,
            [settings.called],
            lambda kind, text: None,
            _CLASSES,
            _listening_tls(settings.tls) if settings.tls else None,
        )

    def __enter__(self) -> MoveReceiver:
        """Listen."""
        self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Listen no more."""
        self._server.__exit__(*exc)

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return self._server.port

    def begin(self, sop_class: str, instance: str, syntax: str) -> _Watched:
        """Open a file for an announced object."""
        return self.arrivals.open(sop_class, instance, syntax)

    def keep(self, incoming: _Watched, association: str) -> Path:
        """Keep a complete object.

        Raises:
            StoreRefused: it is not kept.
        """
        del association
        try:
            incoming.keep()
        except TransferError:
            raise StoreRefused(NOT_UNDERSTOOD, "it is not what was announced") from None
        except (Stopped, OncofedError, OSError):
            raise StoreRefused(OUT_OF_RESOURCES, "it cannot be kept now") from None
        return incoming.path.parent

    def settle(self, series: Path, alive: object) -> None:
        """Do nothing: a series is complete when all its instances are."""


def _listening_tls(tls: TlsSettings) -> ssl.SSLContext:
    if tls.certificate is None:
        raise SpecError("dimse.tls: to listen for moved images it needs certificate and key; or set retrieve: get")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.ca)
    except (ssl.SSLError, OSError) as error:
        raise SpecError(f"dimse.tls: its certificates cannot be used ({error.strerror or 'not PEM'})") from None
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _finish(responses: Iterator[tuple[Dataset, Any]], arrivals: _Arrivals, verb: str, association: Association) -> None:
    """Wait for the end of a C-GET or C-MOVE.

    Raises:
        ArchiveAwayError: it broke off.
        TransferError: the archive refuses.
        BaseException: what kept an object from being kept.
    """
    status = None
    for answer, _ in responses:
        status = answer.get("Status")
        if arrivals.failure:
            association.abort()
            break
    if arrivals.failure:
        raise arrivals.failure
    if status is None:
        raise ArchiveAwayError("the archive ended the connection, or did not answer in time")
    if status == 0xA801:  # PS3.4, table C.4-2
        raise AccessRefusedError(
            "the archive does not know where to move images to. Have its administrator enter this machine's AE title "
            "with host and port, or set retrieve: get"
        )
    # With any other status some of the objects may not have been sent: the caller finds out which.
    if status in _REFUSED:
        raise TransferError(f"the archive refuses a {verb} with status 0x{status:04X}")


def _end(association: Association) -> None:
    if association.is_established:
        association.release()


def _identifier(level: str, keys: Mapping[str, Any]) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()
