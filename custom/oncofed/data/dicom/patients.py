"""The patient of an image.

By its PatientID or, if an anonymiser gave all patients the same one, by study, series or folder.
"""

from __future__ import annotations

from typing import Literal

from oncofed.data.dicom.header_types import ObjectHeader

PatientFrom = Literal["id", "study", "series", "folder"]


def person(path: str, header: ObjectHeader, rule: PatientFrom) -> str:
    """Return a key that all images of a patient share.

    Args:
        path: of the file, inside the registered folder.
        header: of the file.
        rule: "id": PatientID. "study", "series": each study or series of a PatientID is a patient. "folder": each
            top-level folder is a patient; a file outside them goes by its PatientID.
    """
    patient: str = header.patient
    if rule == "folder":
        folder, inside, _ = path.partition("/")
        return f"folder|{folder}" if inside else patient
    uid = header.study if rule == "study" else header.series if rule == "series" else ""
    return f"{patient}|{rule} {uid}" if uid else patient
