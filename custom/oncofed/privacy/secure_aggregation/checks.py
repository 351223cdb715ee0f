"""What must hold before a site or the server goes on.

All are pure functions of what was received; each refusal has the name of its rule.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.messages import (
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    Ready,
    Roster,
    Survivors,
)
from oncofed.privacy.secure_aggregation.rules import Rules, Verify, VerifyKey, Weigh, threshold

_SHARE_TOLERANCE = 1e-9
_NORM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Session:
    """What all messages of an attempt have in common.

    Attributes:
        job: its identifier.
        plan_digest: of what the job's sites run.
        round: number.
        attempt: number.
        base_digest: of the model with which the sites began.
    """

    job: str
    plan_digest: str
    round: int
    attempt: int
    base_digest: str

    def check_attempt(self, what: str, round: int, attempt: int) -> None:  # noqa: A002
        """Refuse a message of another round or attempt.

        Raises:
            ProtocolError: says which it is of, and which was expected.
        """
        if (round, attempt) != (self.round, self.attempt):
            raise ProtocolError(
                "attempt",
                f"{what} is of round {round}, attempt {attempt}, expected round {self.round}, attempt {self.attempt}",
            )


def check_advertisements(
    advertisements: Sequence[KeyAdvertisement], job: str, plan_digest: str, verify: Verify
) -> dict[str, VerifyKey]:
    """Return the certified key of each site of a job, by name.

    Raises:
        ProtocolError: a site's advertisement is not acceptable.
    """
    keys: dict[str, VerifyKey] = {}
    known: dict[str, bytes] = {}
    for one in advertisements:
        keys[one.site] = check_advertisement(one, job, plan_digest, verify)
        check_new(one.site, one.public_key, known)
        known[one.site] = one.public_key
    return keys


def check_advertisement(one: KeyAdvertisement, job: str, plan_digest: str, verify: Verify) -> VerifyKey:
    """Return the certified key of the site that advertises.

    Raises:
        ProtocolError: it is of another job or plan, not certified, or its signature is not valid.
    """
    if one.job != job:
        raise ProtocolError("another job", f"the key of {one.site} is of job {one.job}, expected {job}")
    if one.plan_digest != plan_digest:
        raise ProtocolError("another plan", f"{one.site} runs another plan of job {job} than this site")
    key = verify(one)
    if not key.is_signed(one.signed_part(), one.signature):
        raise ProtocolError("signature", f"the key of {one.site} is not signed by its certificate's key")
    return key


def check_new(site: str, public_key: bytes, known: Mapping[str, bytes]) -> None:
    """Refuse a second key of a site, and a second site with a key.

    Raises:
        ProtocolError: says which it is.
    """
    if site in known:
        raise ProtocolError("a name twice", f"{site} shows two keys, expected one")
    if public_key in known.values():
        raise ProtocolError("a key twice", f"{site} shows the key of another site, expected one of its own")


def check_ready(ready: Ready, session: Session, keys: Mapping[str, VerifyKey]) -> None:
    """Refuse a READY that does not belong to an attempt.

    Raises:
        ProtocolError: its site is unknown, it is of another attempt or model, or its signature is not valid.
    """
    if ready.site not in keys:
        raise ProtocolError("unknown site", f"{ready.site} has advertised no key for this job")
    session.check_attempt(f"READY of {ready.site}", ready.round, ready.attempt)
    if ready.base_digest != session.base_digest:
        raise ProtocolError(
            "another model",
            f"{ready.site} began with another model than expected: a server that sends sites different models could "
            "read one site's update from the sum",
        )
    if not keys[ready.site].is_signed(ready.signed_part(session.job, session.plan_digest), ready.signature):
        raise ProtocolError("signature", f"READY of {ready.site} is not signed by its certificate's key")


def check_roster(
    roster: Roster, own: Ready, session: Session, keys: Mapping[str, VerifyKey], rules: Rules, weigh: Weigh
) -> None:
    """Refuse a roster in which a site should not take part.

    Args:
        roster: from the server.
        own: what the site itself said.
        session: of the attempt.
        keys: of all sites of the job, by name.
        rules: of job and policy.
        weigh: each site's share of the mean.

    Raises:
        ProtocolError: names the rule.
    """
    session.check_attempt("the roster", roster.round, roster.attempt)
    readies = {ready.site: ready for ready in roster.readies}
    if [ready.site for ready in roster.readies] != sorted(readies):
        raise ProtocolError("a name twice", "the roster names a site twice, or is not sorted by name")
    if readies.get(own.site) != own:
        raise ProtocolError("own entry", f"the roster has not what {own.site} itself said in READY")
    known: dict[str, bytes] = {}
    for ready in roster.readies:
        check_ready(ready, session, keys)
        check_new(ready.site, ready.public_key, known)
        known[ready.site] = ready.public_key
    check_sum(own.site, readies, keys, rules, "the roster", rules.fewest)
    expected = weigh(readies)
    wrong = sorted(
        site
        for site in {*expected, *roster.weights}
        if not math.isclose(expected.get(site, -1.0), roster.weights.get(site, -1.0), rel_tol=_SHARE_TOLERANCE)
    )
    if wrong:
        raise ProtocolError(
            "weights", f"the server weighs {', '.join(wrong)} otherwise than follows from the cases and steps in READY"
        )
    _check_scored(roster, own.site, keys, rules)


def check_forwarded(
    forwarded: ForwardedShares, own: str, roster: Roster, keys: Mapping[str, VerifyKey], rules: Rules
) -> tuple[str, ...]:
    """Return whose shares came, and the site itself; sorted.

    Raises:
        ProtocolError: they are of strangers, for another site, or of too few.
    """
    everybody = {ready.site for ready in roster.readies}
    if forwarded.site != own:
        raise ProtocolError("another site", f"the shares are for {forwarded.site}, expected {own}")
    shared = {*forwarded.sealed, own}
    if own in forwarded.sealed or not shared <= everybody:
        raise ProtocolError("unknown site", "shares came from a site that is not in the roster, or from this one")
    _check_threshold("ShareKeys", "shares came from", len(shared), len(everybody))
    _check_all_scored(roster, shared, "has not shared its keys")
    check_sum(own, shared, keys, rules, "those who shared their keys", rules.fewest_left)
    return tuple(sorted(shared))


def check_survivors(
    survivors: Survivors,
    own: str,
    roster: Roster,
    shared: Sequence[str],
    keys: Mapping[str, VerifyKey],
    rules: Rules,
) -> None:
    """Refuse a set of survivors whose sum should not be known.

    Raises:
        ProtocolError: a name comes twice or is unknown, the site itself is missing, or they are too few.
    """
    sites = survivors.sites
    if list(sites) != sorted(set(sites)):
        raise ProtocolError("a name twice", "the survivors name a site twice, or are not sorted by name")
    if not set(sites) <= set(shared):
        raise ProtocolError("unknown site", "the survivors name a site whose keys were not shared")
    if own not in sites:
        raise ProtocolError("own entry", f"{own} is not among the survivors, expected it to be asked only if it is")
    _check_threshold("ConsistencyCheck", "the server names as survivors", len(sites), len(roster.readies))
    _check_all_scored(roster, sites, "is not among the survivors")
    check_sum(own, sites, keys, rules, "the sum", rules.fewest_left)


def check_confirmations(
    confirmations: Confirmations,
    own: str,
    roster: Roster,
    survivors: Survivors,
    statement: bytes,
    keys: Mapping[str, VerifyKey],
) -> None:
    """Refuse to reveal without a quorum's signatures.

    Args:
        confirmations: from the server.
        own: name of the site.
        roster: of the attempt.
        survivors: that the site itself signed.
        statement: what it signed.
        keys: of all sites, by name.

    Raises:
        ProtocolError: there are fewer than t, the site's own is missing, or one is not of this statement.
    """
    signatures = confirmations.signatures
    if not set(signatures) <= set(survivors.sites):
        raise ProtocolError("unknown site", "a site that is not among the survivors confirms them")
    if own not in signatures:
        raise ProtocolError("own entry", f"the confirmation of {own} is not among those that the server collected")
    _check_threshold("ConsistencyCheck", "the server shows confirmations of", len(signatures), len(roster.readies))
    _check_all_scored(roster, signatures, "has not confirmed the roster")
    for site, signature in signatures.items():
        if not keys[site].is_signed(statement, signature):
            raise ProtocolError(
                "signature", f"{site} has not confirmed the roster and the survivors that {own} was told"
            )


def check_sum(
    own: str, sites: Collection[str], keys: Mapping[str, VerifyKey], rules: Rules, what: str, fewest: int
) -> None:
    """Refuse a set of sites that is too small or of strangers.

    Raises:
        ProtocolError: says what is missing.
    """
    rules.check_sum(own, {site: keys[site].fingerprint for site in sites if site != own}, what, fewest)


def check_types(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be summed.

    Raises:
        ProtocolError: there is none, or one holds integers, or lies elsewhere than in memory.
    """
    if not tensors:
        raise ProtocolError("type", "the update has no tensor, expected at least one")
    for name, value in tensors.items():
        if not value.is_floating_point() or value.device.type != "cpu":
            raise ProtocolError(
                "type", f"tensor {name} is {value.dtype} on {value.device.type}, expected floating-point on the cpu"
            )


def check_norm(norm: float, declared: float, tensors: int) -> None:
    """Refuse an update that is longer than its site declared.

    Args:
        norm: of the tensors without a factor of their own.
        declared: in READY.
        tensors: their number.

    Raises:
        ProtocolError: it is, or is not finite.
    """
    if not math.isfinite(norm):
        raise ProtocolError("not finite", "the update has a value that is not finite, expected finite numbers alone")
    if norm > declared * (1 + _NORM_TOLERANCE):
        raise ProtocolError(
            "norm",
            # Not how long it is: the words reach the server, which READY tells two digits, or a bound, and no more.
            f"the update is longer than READY declared ({declared:g}): expected the norm over all {tensors} tensors "
            "without a factor of their own",
        )


def _check_scored(roster: Roster, own: str, keys: Mapping[str, VerifyKey], rules: Rules) -> None:
    """Refuse scores of too few sites, or of strangers.

    Raises:
        ProtocolError: says what is wrong.
    """
    scored, having = roster.scored, {ready.site for ready in roster.readies if any(ready.figures)}
    if list(scored) != sorted(set(scored)) or not set(scored) <= having:
        raise ProtocolError("scores", "the roster names sites without scores among those with, or not sorted by name")
    if own in scored:
        check_sum(own, scored, keys, rules, "the sum of scores", rules.fewest_left)


def _check_all_scored(roster: Roster, found: Collection[str], what: str) -> None:
    """Refuse to lose a site's scores: the difference to a sum that has them would be this site's."""
    if missing := sorted(set(roster.scored) - set(found)):
        raise ProtocolError("scores", f"{', '.join(missing)} {what}, expected all whose scores are in the sum")


def _check_threshold(step: str, what: str, found: int, everybody: int) -> None:
    needed = threshold(everybody)
    if found < needed:
        raise ProtocolError("too few sites", f"{step}: {what} {found} of {everybody} sites, expected at least {needed}")
