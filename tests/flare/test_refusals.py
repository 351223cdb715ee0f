"""Reasons that leave a site with a refusal."""

from __future__ import annotations

import pytest

from oncofed.errors import (
    AuditError,
    DataError,
    FederationError,
    PolicyError,
    StateError,
    TrainingError,
    UnreadableError,
)
from oncofed.flare.refusals import refusal_of
from oncofed.messages.results import Refusal

SECRET = "/data/MRN-0007.nii.gz"


@pytest.mark.parametrize(
    ("error", "reason", "may_pass"),
    [
        (StateError(SECRET), "its kept state cannot be used; the site's own log says more", False),
        (UnreadableError(SECRET), "it cannot read a file that it could read before; the site's own log names it", True),
        (DataError(SECRET), "its data did not pass the checks; the site's own log names the cases", False),
        (AuditError(SECRET), "it cannot write its audit log, and runs nothing unrecorded", True),
        (FederationError(SECRET), "FederationError; the site's own log says more", False),
        (OSError(SECRET), "OSError during train; the site's own log says more", True),
        (ValueError(SECRET), "ValueError during train; the site's own log says more", False),
        (TrainingError("the loss was not finite"), "the loss was not finite", False),
        (PolicyError("the dataset is not allowed"), "the dataset is not allowed", False),
    ],
)
def test_only_texts_meant_for_the_server_leave(error: Exception, reason: str, may_pass: bool) -> None:
    assert refusal_of(error, "train") == Refusal(reason, may_pass)
