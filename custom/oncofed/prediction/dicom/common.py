"""Shared parts of DICOM objects: equipment, UIDs, descriptions."""

from __future__ import annotations

import io
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.uid import UID

from oncofed import __version__
from oncofed.atomic import write_whole
from oncofed.prediction.dicom.codes import clean

if TYPE_CHECKING:
    from oncofed.prediction.model import TrainedModel

MANUFACTURER = "oncofed"
RESEARCH = "RESEARCH"
_DIGEST_SHOWN = 12
_HIGHEST_SERIES_NUMBER = 2**31 - 1  # of an integer string (IS of PS3.5)


@dataclass(frozen=True)
class ModelIdentity:
    """Identifies the model that made an object.

    Attributes:
        name: name of its job.
        digest: SHA-256 of its weights, 64 hexadecimal digits.
        version: oncofed's version.
    """

    name: str
    digest: str
    version: str = __version__

    @classmethod
    def of(cls, model: TrainedModel) -> ModelIdentity:
        """Return a trained model's identity."""
        return cls(model.job.name, model.digest)

    @property
    def algorithm_version(self) -> str:
        """Program version and the start of the model's digest."""
        return clean(f"oncofed {self.version}, model {self.digest[:_DIGEST_SHOWN]}")

    @property
    def parameters(self) -> dict[str, str]:
        """Full digest of the model, and its job."""
        return {"model_sha256": self.digest, "job": clean(self.name)}


def series_description(what: str) -> str:
    """Return a series description that begins with RESEARCH."""
    return clean(f"{RESEARCH}: {what}")


def series_number(source: Dataset, block: int) -> int:
    """Return a number distinct from the source series'.

    Args:
        source: header of the series.
        block: added in thousands.
    """
    try:
        own = int(source.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        own = 0
    number = max(own, 0) + 1000 * block
    return number if number <= _HIGHEST_SERIES_NUMBER else 1000 * block


def derived_uid(*parts: str) -> UID:
    """Derive a UID from texts, reproducibly (PS3.5, section B.2)."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(('oncofed', *parts))).int}")


def write_dataset(dataset: Dataset, path: Path) -> None:
    """Write a data set atomically as a DICOM file (PS3.10)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Patient and study attributes are copied as they are, valid or not.
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
