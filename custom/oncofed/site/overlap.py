"""A site's file for counting patients that sites share: written where the policy lets it, and recorded."""

from __future__ import annotations

from pathlib import Path

from oncofed.atomic import write_whole
from oncofed.audit import AuditLog
from oncofed.data.overlap import site_patients
from oncofed.errors import PolicyError
from oncofed.privacy.policy import read_policy

WRITTEN = "patients' fingerprints written"


def write_fingerprints(kit: Path, site: str, folder: Path, key: Path, out: Path) -> int:
    """Write a dataset's fingerprints, and return the number of patients.

    Args:
        kit: of the site, with its policy and audit log.
        site: its name.
        folder: the dataset, registered.
        key: file that the sites share.
        out: file to write.

    Raises:
        PolicyError: the site's policy does not let it.
        DataError: see ``site_patients``.
        AuditError: it cannot be recorded; then nothing is written.
    """
    policy = read_policy(kit / "local")
    if policy is None or not policy.leaves.patient_overlap:
        raise PolicyError(
            f"{kit}: the site's policy does not let fingerprints of patients leave. Whoever decides allows it with: "
            "oncofed site policy edit, leaves: {patient_overlap: true}"
        )
    found = site_patients(folder, site, key.read_bytes())
    AuditLog(kit).write(WRITTEN, dataset=folder.name, patients=len(found.patients), key=found.key)
    write_whole(out, found.model_dump_json(by_alias=True) + "\n")
    return len(found.patients)
