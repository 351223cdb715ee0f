"""Check a job's archive before FLARE unpacks it.

FLARE 2.9.0 has no event before a submitted archive is read: replaces ``JobMetaValidator.validate``, which is the first
to open it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvflare.private.fed.server.job_meta_validator import JobMetaValidator


def check_archives(problem_of: Callable[[str], str | None], validated: Callable[[str | None], object]) -> None:
    """Have the server check each submitted archive first.

    Args:
        problem_of: given the archive's path, returns why it is refused, or None.
        validated: called with the path once FLARE accepts the archive too, with None where it does not.
    """
    validate = JobMetaValidator.validate

    def validate_checked(self: JobMetaValidator, job_name: str, zip_file_name: str) -> tuple[bool, str, dict[str, Any]]:
        problem = problem_of(zip_file_name)
        if problem:
            return False, f"the job's archive: {problem}", {}
        valid, error, meta = validate(self, job_name, zip_file_name)
        validated(zip_file_name if valid else None)
        return bool(valid), str(error), meta

    JobMetaValidator.validate = validate_checked
