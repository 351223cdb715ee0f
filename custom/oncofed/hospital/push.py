"""Send predictions to the archive, where the site's policy allows it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from oncofed.audit import AuditLog
from oncofed.data.dicom.headers import looks_like_dicom
from oncofed.data.folder import find_files
from oncofed.errors import DataError, PolicyError, SpecError, TransferError
from oncofed.hospital.archive import AccessRefusedError, ArchiveAwayError
from oncofed.hospital.connections import connections
from oncofed.hospital.settings import PacsSettings
from oncofed.prediction.dicom.common import MANUFACTURER
from oncofed.privacy.policy import read_policy
from oncofed.private_files import write_private

LOG_FILE = ".pushed.json"
PUSHED = "predictions sent to the archive"
_TAGS = ["SOPInstanceUID", "Manufacturer", "PatientIdentityRemoved"]
_BLOCK = 1 << 20


@dataclass
class PushOutcome:
    """What was sent.

    Attributes:
        sent: number of objects that the archive stored.
        before: objects that it had stored before.
        left_out: why -> number of objects that were not sent.
        refused: why -> number of objects that the archive did not take.
    """

    sent: int = 0
    before: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


def push(folder: Path, settings: PacsSettings, kit: Path, progress: Callable[[str, int, int], None]) -> PushOutcome:
    """Send the DICOM objects that oncofed made of a folder; those that were sent before are not sent again.

    Args:
        folder: of ``oncofed predict``; it keeps which objects each archive stored, by digest.
        settings: of the archive.
        kit: of the site, with its policy and audit log.
        progress: called with (step, number done, number in all).

    Raises:
        PolicyError: the site's policy does not let it.
        DataError: the folder holds no such object.
        TransferError: the archive does not answer; what it stored is remembered.
        AuditError: it cannot be recorded; then nothing is sent.
    """
    if not folder.is_dir():
        raise SpecError(f"{folder}: no such folder. Name that of oncofed predict")
    policy = read_policy(kit / "local")
    if policy is None or not policy.pacs.push:
        raise PolicyError(
            f"{kit}: the site's policy does not let predictions go into the archive. Whoever decides allows it with: "
            "oncofed site policy edit, pacs: {push: true}"
        )
    outcome = PushOutcome()
    files = _predictions(folder, outcome)
    if not files:
        raise DataError(f"{folder}: it holds no DICOM object that oncofed predict wrote. Predict with DICOM outputs")
    archives = _stored(folder)
    stored = archives.setdefault(settings.address, set())
    new = {file: digest for file in files if (digest := _sha256(file)) not in stored}
    outcome.before = len(files) - len(new)
    if not new:
        return outcome
    AuditLog(kit).write(PUSHED, objects=len(new), digests=_digest(new.values()), host=settings.host)
    with connections(settings) as connect, contextlib.closing(connect()) as archive:
        for number, (file, digest) in enumerate(new.items(), start=1):
            try:
                archive.store(file)
            except (ArchiveAwayError, AccessRefusedError) as error:
                raise type(error)(
                    f"{error}. {outcome.sent} of {len(new)} objects are stored; the same command sends the rest"
                ) from None
            except TransferError as error:
                outcome.refused[str(error)] += 1
            else:
                outcome.sent += 1
                stored.add(digest)
                values = {address: sorted(digests) for address, digests in archives.items()}
                write_private(folder / LOG_FILE, (json.dumps(values) + "\n").encode())
            progress("sending", number, len(new))
    return outcome


def _predictions(folder: Path, outcome: PushOutcome) -> list[Path]:
    """Return the DICOM objects that oncofed made."""
    files = []
    for name in find_files(folder).files:
        path = folder / name
        try:
            if not looks_like_dicom(path):
                continue
            header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except Exception:  # noqa: BLE001 - a broken file raises any type of error
            outcome.left_out["cannot be read"] += 1
            continue
        why = _why_not(header)
        if why:
            outcome.left_out[why] += 1
        else:
            files.append(path)
    return files


def _why_not(header: Dataset) -> str:
    if header.get("Manufacturer") != MANUFACTURER:
        return "not made by oncofed"
    if header.get("PatientIdentityRemoved") == "YES":
        return "made of de-identified images: the archive knows no such patient"
    return ""


def _stored(folder: Path) -> dict[str, set[str]]:
    """Return the digests that each archive stored."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads((folder / LOG_FILE).read_text(encoding="utf-8"))
        return {str(address): set(map(str, digests)) for address, digests in found.items()}
    return {}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _digest(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
