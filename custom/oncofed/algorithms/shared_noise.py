"""What noise that sites make together asks of how they train together.

Server and sites follow the same rules: a site whose noise is a part of the whole trusts no setting of the job before
it has looked at it.
"""

from __future__ import annotations

from collections.abc import Mapping

from oncofed.algorithms.plan import FederationPlan
from oncofed.privacy.secure_aggregation import ProtocolError, Ready, threshold
from oncofed.privacy.settings import PrivacySpec
from oncofed.settings import SettingError

_SECTION = "privacy.differential_privacy"
_STRATEGIES = ("fedavg", "fedavgm")
_TOLERANCE = 1e-6


def check_shared_noise(privacy: PrivacySpec, federation: FederationPlan) -> None:
    """Refuse a job whose sites would make too little noise together; one with other noise passes.

    The server reads a sum only if more than two thirds of a roster help it, and a lying one shows two sets of survivors
    to no more sites than ``2 t - n`` (Bonawitz et al., CCS 2017).

    Raises:
        SettingError: names the setting to change.
    """
    private = privacy.differential_privacy
    if private is None or not privacy.shares_noise:
        return
    if privacy.secure_aggregation != federation.secure_aggregation or private.lost != federation.lost:
        raise SettingError(
            "the sites' plan has other masks than the server's: noise that they make together leaves under both alike",
            "privacy.secure_aggregation",
        )
    name = federation.strategy.name
    if name not in _STRATEGIES:
        raise SettingError(
            f"found {name} beside {_SECTION}.noise: shared, which needs the sum of all patients' gradients as it is: "
            f"take {' or '.join(_STRATEGIES)}",
            "strategy",
            _SECTION,
        )
    sites = federation.smallest_roster or 0
    # As many as could be lost, or collude, whichever larger roster comes: it goes by threes.
    most_lost = sites - threshold(sites)
    most_colluding = min(2 * threshold(n) - n for n in range(sites, sites + 3)) - 1
    for setting, found, most in (("lost", private.lost, most_lost), ("colluding", private.colluding, most_colluding)):
        if found > most:
            raise SettingError(
                f"found {found}, expected at most {most} with rosters of {sites} sites "
                "(privacy.secure_aggregation.minimum_sites): lower it, or raise minimum_sites",
                f"{_SECTION}.{setting}",
                "privacy.secure_aggregation",
            )


def cases_of_roster(readies: Mapping[str, Ready], weights: Mapping[str, float]) -> int:
    """Return the training cases of all sites of a roster.

    Args:
        readies: what the sites declare.
        weights: their shares of the mean.

    Raises:
        ProtocolError: a share is not by cases, so that one site's noise would count less than another's patients.
    """
    total = sum(ready.cases for ready in readies.values())
    for site, ready in readies.items():
        if abs(weights.get(site, 0.0) * total - ready.cases) > _TOLERANCE * total:
            raise ProtocolError(
                "weights",
                f"{site} does not weigh as many cases as it has, expected it with noise that sites make together: "
                "raise exchange.largest_weight",
            )
    return total
