"""Storage SCU: sends results by C-STORE, with retries."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider

from oncofed.errors import one_line
from oncofed.prediction.watching.application_entity import ApplicationEntity, Notify
from oncofed.prediction.watching.journal import Journal

_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0
# After this many refusals a file is given up.
_MOST_REFUSALS = 5
# PS3.4, table B.2-1: stored with coercion or missing elements.
_WARNINGS = {0xB000, 0xB006, 0xB007}


class SendStatus(Enum):
    """Outcome of sending one file."""

    STORED = "stored"
    REFUSED = "refused"
    NEVER = "cannot be sent"
    AWAY = "no answer"


@dataclass(frozen=True)
class SendResult:
    """Outcome of sending one file, and why it failed."""

    sent: SendStatus
    why: str = ""


_NOT_TAKEN = SendResult(SendStatus.NEVER, "it does not take objects of this kind")


class RequestorMessages(DIMSEServiceProvider):
    """Leaves each response to whoever waits for it.

    pynetdicom's reactor may take one, and drop it, in the moment in which it is paused.
    """

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message; none for the reactor, which alone does not wait."""
        return super().get_msg(block) if block else (None, None)


def send(
    files: Sequence[Path], peer: ApplicationEntity, ae_title: str, tls: ssl.SSLContext | None = None
) -> list[SendResult]:
    """Send DICOM files in one association.

    Args:
        files: DICOM files with file meta information (PS3.10).
        peer: receiver.
        ae_title: of the sender.
        tls: of the connection; None: it is not encrypted.
    """
    logging.getLogger("pynetdicom").propagate = False
    entity = AE(ae_title)
    entity.connection_timeout = entity.acse_timeout = _CONNECT_SECONDS
    entity.dimse_timeout = entity.network_timeout = _ANSWER_SECONDS
    kinds = [_kind(file) for file in files]
    for sop_class, syntax in sorted({kind for kind in kinds if kind}):
        entity.add_requested_context(sop_class, syntax)
    unreadable = SendResult(SendStatus.NEVER, "the file is gone or no DICOM file")
    if not any(kinds):
        return [unreadable] * len(files)
    try:
        association = entity.associate(
            peer.address.host,
            peer.address.port,
            ae_title=peer.title,
            tls_args=(tls, peer.address.host) if tls else None,
        )
    except OSError as error:  # unknown host
        return [
            SendResult(SendStatus.AWAY, error.strerror or "nobody answers there") if kind else unreadable
            for kind in kinds
        ]
    if not association.is_established:
        return [_association_failure(association) if kind else unreadable for kind in kinds]
    association.dimse = RequestorMessages(association)
    try:
        replies = []
        for file, kind in zip(files, kinds, strict=True):
            reply = unreadable
            if kind:
                reply = _NOT_TAKEN
                if any((c.abstract_syntax, c.transfer_syntax[0]) == kind for c in association.accepted_contexts):
                    reply = _store_result(
                        association.send_c_store(file).get("Status") if association.is_established else None
                    )
            replies.append(reply)
        return replies
    finally:
        if association.is_established:
            association.release()


def _kind(file: Path) -> tuple[str, str] | None:
    """Return a file's SOP class and transfer syntax, if DICOM."""
    try:
        meta = pydicom.dcmread(file, specific_tags=["SOPClassUID"], stop_before_pixels=True).file_meta
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except (OSError, InvalidDicomError, AttributeError):
        return None


def _association_failure(association: Association) -> SendResult:
    """Return why no association was established."""
    if association.is_rejected:
        return SendResult(
            SendStatus.AWAY, "it turns the association away: does it know this AE title, and is it called so?"
        )
    # The peer accepted the association but none of the contexts, so pynetdicom aborted it.
    return _NOT_TAKEN if association.rejected_contexts else SendResult(SendStatus.AWAY, "nobody answers there")


def _store_result(status: int | None) -> SendResult:
    if status is None:
        return SendResult(SendStatus.AWAY, "it ended the connection, or did not answer in time")
    if status == 0 or status in _WARNINGS:
        return SendResult(SendStatus.STORED)
    return SendResult(SendStatus.REFUSED, f"it refuses the object with status 0x{status:04X}")


class SendQueue:
    """Files waiting to be sent, as the journal lists them.

    Args:
        folder: base of the journal's relative paths.
        journal: lists the files to send.
        peer: receiver.
        ae_title: of the sender.
        notify: called with each event.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        peer: ApplicationEntity,
        ae_title: str,
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._journal, self._peer, self._title = folder, journal, peer, ae_title
        self._notify, self._clock = notify, clock
        self._next, self._pause = 0.0, _FIRST_PAUSE
        self._refusals: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Number of files not yet acknowledged."""
        return sum(len(record.to_send) for record in self._journal.records.values())

    def send_due(self) -> None:
        """Send waiting files; the pause doubles after each failure."""
        if not self.waiting or self._clock() < self._next:
            return
        for name, record in list(self._journal.records.items()):
            if record.to_send and not self._send(name, list(record.to_send)):
                self._next = self._clock() + self._pause
                self._notify("unsent", f"{self.waiting} files wait for {self._peer}: again in {self._pause:.0f} s")
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                return
        self._pause = _FIRST_PAUSE

    def _send(self, name: str, files: list[str]) -> bool:
        """Send one result; return whether all of it is settled."""
        replies = send([self._folder / file for file in files], self._peer, self._title)
        stored = [file for file, reply in zip(files, replies, strict=True) if reply.sent is SendStatus.STORED]
        for file in stored:
            self._journal.sent(name, file)
        if stored:
            self._notify("sent", f"{one_line(name, 80)}: {len(stored)} files to {self._peer}")
        left = False
        for file, reply in zip(files, replies, strict=True):
            if reply.sent is SendStatus.REFUSED:
                self._refusals[file] = self._refusals.get(file, 0) + 1
            if reply.sent is SendStatus.NEVER or self._refusals.get(file, 0) >= _MOST_REFUSALS:
                self._journal.abandon(name, file, reply.why)
                self._notify("failed", f"{one_line(file, 80)} is not sent to {self._peer}: {reply.why}")
            elif reply.sent is not SendStatus.STORED:
                left = True
        away = next((reply.why for reply in replies if reply.sent in {SendStatus.AWAY, SendStatus.REFUSED}), "")
        if left:
            self._notify("unsent", f"{one_line(name, 80)} is not sent to {self._peer} yet: {away}")
        return not left
