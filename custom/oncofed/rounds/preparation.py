"""Sites load their data before they take part."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

from oncofed.data.harmonization.sums import SumsForm
from oncofed.errors import UpdateRejectedError
from oncofed.messages.requests import PrepareRequest
from oncofed.messages.results import Refusal, Result
from oncofed.rounds.context import RoundContext
from oncofed.rounds.encoders import ENCODER, common_encoder, difference, is_unknown
from oncofed.rounds.events import EncoderUnknown, Excluded, Joined, Ready, TaskSent
from oncofed.rounds.intake import counts
from oncofed.rounds.quorum import Goal
from oncofed.rounds.site_task import SiteTask

# A site that was never heard of counts as lost after ``rounds.return_s``, within these bounds: its processes take time
# to start, also after a restart of the server.
_SHORTEST_COMING_SECONDS, _LONGEST_COMING_SECONDS = 30.0, 90.0


class Preparation(Goal):
    """Has sites load their data.

    The task stays open for sites that join later.

    Args:
        context: of the run.
        profile: request histograms of training images.
        bins: of each such histogram, by name.
        covariates: names of the job's numbers, whose sums are requested with them.
        slides: whether sites may tell how good their slides' tiles are.
        combat: of the sums for ComBat that sites may tell.
        unknown_encoders: sites that do not know their encoder's weights may train with sites that do.
    """

    description = "before the first round"

    def __init__(
        self,
        context: RoundContext,
        *,
        profile: bool,
        bins: Mapping[str, int],
        covariates: Collection[str] = (),
        slides: bool = False,
        combat: SumsForm | None = None,
        unknown_encoders: bool = False,
    ) -> None:
        self._context = context
        self._request = PrepareRequest(profile=profile)
        self._bins, self._covariates, self._slides, self._combat = bins, covariates, slides, combat
        self._expected = set(context.sites.all)
        self._started = context.clock()
        self._joining = threading.Lock()
        self._unknown_encoders = unknown_encoders
        self._encoder: str | None = None
        self._begun = False

    def run(self) -> None:
        """Wait for the sites that the job starts with.

        Raises:
            EncodersDifferError: their features are, or may be, of different encoders.
            NotEnoughSitesError: too few sites are left.
        """
        context = self._context
        context.transport.open(
            SiteTask(name=PrepareRequest.task, sites=None, make_request=self._make_request, on_result=self._on_result)
        )
        context.quorum.wait_for(self)
        with self._joining:
            self._encoder = common_encoder(context.sites.cases, self._unknown_encoders)
            self._begun = True
        cases = dict(sorted(context.sites.cases.items()))
        context.record(Ready(seconds=context.clock() - self._started, sites=cases))

    def _make_request(self, site: str) -> PrepareRequest:
        self._context.record(TaskSent(task=PrepareRequest.task, round=0, split="", sites=[site]))
        return self._request

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        del task
        context = self._context
        try:
            numbers = counts(result, self._bins, self._covariates, self._slides, self._combat)
        except UpdateRejectedError as error:
            context.intake.reasons[site] = str(error)
            context.record(Excluded(site=site, reason=str(error)))
            return
        profile, sums = numbers.pop("profile", {}), numbers.pop("covariates", {})
        combat = numbers.pop("harmonization", {})
        with self._joining:
            if self._begun and (reason := difference(numbers, self._encoder, self._unknown_encoders)):
                context.intake.reasons[site] = reason
                context.record(Excluded(site=site, reason=reason))
                return
            if self._begun:
                self._encoder = self._encoder or numbers.get(ENCODER)
            context.sites.join(site, numbers, profile, sums, combat)
        if is_unknown(numbers):
            context.record(EncoderUnknown(site=site))
        context.record(Joined(site=site, cases=numbers, started=context.clock() - self._started))

    def is_reached(self) -> bool:
        """Return whether all sites are settled.

        Once time is up, enough sites suffice.
        """
        context, sites = self._context, self._context.sites
        patience = min(max(context.federation.rounds.return_s, _SHORTEST_COMING_SECONDS), _LONGEST_COMING_SECONDS)
        if context.clock() - self._started > patience:
            for site in self._expected - sites.known():
                context.transport.lose(site, "it did not come back")
            if context.quorum.time_is_up(self._started) and self.have >= self.needed:
                return True  # sites that still load their data join later
        settled = sites.cases.keys() | context.intake.reasons.keys() | sites.lost.keys()
        return self._expected - context.transport.banned <= settled and self.have >= self.needed

    @property
    def have(self) -> int:
        """Sites that joined, without those that were revoked since."""
        return len(self._context.sites.cases.keys() - self._context.transport.banned)

    @property
    def needed(self) -> int:
        """Sites that must join."""
        return self._context.federation.rounds.quorum or max(1, len(self._expected - self._context.transport.banned))

    @property
    def coming(self) -> Collection[str]:
        """All registered sites."""
        return self._expected
