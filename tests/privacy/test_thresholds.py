"""A site counts by the thresholds that it was given first."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import SiteContext
from oncofed.job.spec import parse_job
from oncofed.messages.requests import EvaluateRequest, SumsAsked
from targets_made import JOB, make_dataset


class _Quiet:
    def progress(self, **values: object) -> None: ...

    def note(self, text: str, level: int) -> None: ...


@pytest.mark.attack(
    "a patient's probability of a finding, by F1 of one model at ever closer thresholds",
    by="the site: it counts by the first thresholds of a job alone",
    logged="nowhere: figures by the first ones leave",
)
def test_further_thresholds_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    spec = parse_job(tmp_path / "job.yaml")
    context = SiteContext(site="here", data=make_dataset(tmp_path / "set"), state=tmp_path / "state")
    site = InProcessTraining(plan=spec.plan(), federation=spec.federation(), context=context, reporter=_Quiet())
    try:
        site.prepare()
        heads = site.trainer.task.heads  # type: ignore[attr-defined]
        found = []
        for asked in (None, SumsAsked(), 0.7, 0.71, None, 0.72):
            sums = SumsAsked(thresholds={"findings": {"striped": asked}}) if isinstance(asked, float) else asked
            request = EvaluateRequest(weights=site.trainer.weights(), round=1, split="validation", sums=sums)
            site.validate(request, bool)
            found.append(dict(heads["findings"].known_thresholds))
    finally:
        site.close()
    first = {"striped": 0.7}
    assert found == [{}, {}, first, first, {}, first]
