"""A server that lies is refused, by each rule on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from oncofed.privacy.secure_aggregation import (
    Confirmation,
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    Participant,
    ProtocolError,
    Ready,
    Roster,
    Rules,
    Survivors,
    threshold,
)
from secure_sums import BASE, JOB, PLAN, Federation, mac_signer, mac_verify

SITES = 4


@pytest.fixture
def sites() -> Federation:
    return Federation(SITES)


def refusal(act: Callable[[], object]) -> ProtocolError:
    with pytest.raises(ProtocolError) as refused:
        act()
    return refused.value


def swapped(roster: Roster, number: int, **changes: object) -> Roster:
    """Return a roster with one READY changed, signed anew or not."""
    readies = list(roster.readies)
    readies[number] = dataclasses.replace(readies[number], **changes)
    return dataclasses.replace(roster, readies=tuple(readies))


def signed_again(ready: Ready, **changes: object) -> Ready:
    """Return what a colluding site would say."""
    changed = dataclasses.replace(ready, **changes)
    return dataclasses.replace(changed, signature=mac_signer(ready.site)(changed.signed_part(JOB, PLAN)))


def first(sites: Federation) -> Participant:
    return sites.participants["site-00"]


# --- AdvertiseKeys


def peers_with(sites: Federation, **changes: object) -> list[KeyAdvertisement]:
    known = sites.meet()
    return [known[0], dataclasses.replace(known[1], **changes), *known[2:]]


@pytest.mark.attack("the server puts a key of its own in place of a site's", "server", "site's refusal")
def test_a_swapped_key(sites: Federation) -> None:
    another = sites.participant("site-01").advertise().public_key
    refused = refusal(lambda: first(sites).learn_peers(peers_with(sites, public_key=another)))
    assert refused.rule == "signature"
    assert "site-01" in str(refused)
    assert another.hex() not in str(refused)


def test_a_key_of_another_job_or_plan(sites: Federation) -> None:
    other = Participant("job-2", PLAN, "site-01", mac_signer("site-01"), mac_verify, Rules(), certificates=b"PEM")
    known = sites.meet()
    assert refusal(lambda: first(sites).learn_peers([known[0], other.advertise()])).rule == "another job"
    other = Participant(JOB, "plan-2", "site-01", mac_signer("site-01"), mac_verify, Rules(), certificates=b"PEM")
    assert refusal(lambda: first(sites).learn_peers([known[0], other.advertise()])).rule == "another plan"


def test_a_name_or_a_key_twice(sites: Federation) -> None:
    known = sites.meet()
    again = sites.participant("site-01").advertise()
    assert refusal(lambda: first(sites).learn_peers([*known, again])).rule == "a name twice"
    copied = dataclasses.replace(known[2], public_key=known[1].public_key)
    copied = dataclasses.replace(copied, signature=mac_signer("site-02")(copied.signed_part()))
    assert refusal(lambda: first(sites).learn_peers([*known[:2], copied])).rule == "a key twice"


def test_its_own_key_swapped_or_missing(sites: Federation) -> None:
    known = sites.meet()
    again = sites.participant("site-00").advertise()
    assert refusal(lambda: first(sites).learn_peers([again, *known[1:]])).rule == "own entry"
    assert refusal(lambda: first(sites).learn_peers(known[1:])).rule == "own entry"


# --- ShareKeys


def test_a_ready_of_the_round_before(sites: Federation) -> None:
    old = sites.begin(1).readies[1]
    roster = sites.begin(2)
    readies = (roster.readies[0], old, *roster.readies[2:])
    assert refusal(lambda: first(sites).share_keys(dataclasses.replace(roster, readies=readies))).rule == "attempt"
    assert refusal(lambda: first(sites).share_keys(dataclasses.replace(roster, round=1))).rule == "attempt"
    assert refusal(lambda: first(sites).share_keys(dataclasses.replace(roster, attempt=2))).rule == "attempt"


def test_a_roster_of_two(sites: Federation) -> None:
    roster = sites.begin()
    two = dataclasses.replace(roster, readies=roster.readies[:2], weights={"site-00": 0.5, "site-01": 0.5})
    refused = refusal(lambda: first(sites).share_keys(two))
    assert refused.rule == "too few sites"
    assert "has 2 sites, expected at least 3" in str(refused)


def test_a_roster_below_the_policy() -> None:
    sites = Federation(4)
    strict = Rules(smallest_sum=5)
    sites.participants["site-00"] = one = Participant(
        JOB, PLAN, "site-00", mac_signer("site-00"), mac_verify, strict, certificates=b"PEM"
    )
    sites.meet()
    roster = sites.begin()
    assert "has 4 sites, expected at least 5" in str(refusal(lambda: one.share_keys(roster)))


@pytest.mark.attack("invented sites in a sum with one real one", "server", "site's refusal: unknown peers")
def test_peers_that_the_policy_does_not_name() -> None:
    """Two of three others have to be known; fingerprints of the tests are names in capitals."""
    sites = Federation(4, rules=Rules(peers=frozenset({"SITE-01", "SITE-09"})))
    roster = sites.begin()
    refused = refusal(lambda: first(sites).share_keys(roster))
    assert refused.rule == "unknown peers"
    assert "has 1 sites that the policy" in str(refused)
    sites = Federation(4, rules=Rules(peers=frozenset({"SITE-01", "SITE-02"})))
    first(sites).share_keys(sites.begin())


def test_its_own_entry_changed(sites: Federation) -> None:
    roster = sites.begin()
    assert refusal(lambda: first(sites).share_keys(swapped(roster, 0, cases=1000))).rule == "own entry"
    without = dataclasses.replace(roster, readies=roster.readies[1:])
    assert refusal(lambda: first(sites).share_keys(without)).rule == "own entry"


@pytest.mark.attack("model inconsistency: other sites get a dead model", "server", "site's refusal: another model")
def test_two_models(sites: Federation) -> None:
    """Pasquini et al., CCS 2022: with dead models elsewhere the sum is one site's update."""
    roster = sites.begin()
    other = signed_again(roster.readies[1], base_digest="dead")
    readies = (roster.readies[0], other, *roster.readies[2:])
    refused = refusal(lambda: first(sites).share_keys(dataclasses.replace(roster, readies=readies)))
    assert refused.rule == "another model"


def test_weights_that_do_not_follow_from_cases(sites: Federation) -> None:
    roster = sites.begin()
    for weights in (
        {**roster.weights, "site-01": roster.weights["site-01"] + 1e-6},
        dict.fromkeys(roster.weights, 0.25),
        {name: value for name, value in roster.weights.items() if name != "site-03"},
        {**roster.weights, "site-99": 0.1},
    ):
        changed = dataclasses.replace(roster, weights=weights)
        assert refusal(lambda changed=changed: first(sites).share_keys(changed)).rule == "weights"


def test_a_site_that_advertised_no_key(sites: Federation) -> None:
    roster = sites.begin()
    stranger = signed_again(dataclasses.replace(roster.readies[3], site="site-99"))
    readies = (*roster.readies[:3], stranger)
    assert refusal(lambda: first(sites).share_keys(dataclasses.replace(roster, readies=readies))).rule == "unknown site"


def test_names_twice_or_out_of_order(sites: Federation) -> None:
    roster = sites.begin()
    for readies in ((*roster.readies, roster.readies[3]), tuple(reversed(roster.readies))):
        changed = dataclasses.replace(roster, readies=readies)
        assert refusal(lambda changed=changed: first(sites).share_keys(changed)).rule == "a name twice"


def test_a_key_of_another_site_in_ready(sites: Federation) -> None:
    roster = sites.begin()
    copied = signed_again(roster.readies[2], public_key=roster.readies[1].public_key)
    readies = (*roster.readies[:2], copied, roster.readies[3])
    assert refusal(lambda: first(sites).share_keys(dataclasses.replace(roster, readies=readies))).rule == "a key twice"


def test_a_second_roster(sites: Federation) -> None:
    roster = sites.begin()
    shares = first(sites).share_keys(roster)
    assert first(sites).share_keys(roster) is shares
    assert refusal(lambda: first(sites).share_keys(swapped(roster, 1, cases=9))).rule == "second roster"


def test_an_attempt_reused(sites: Federation) -> None:
    one = first(sites)
    sites.begin(3, 2)
    for number, attempt in ((3, 2), (3, 1), (2, 9)):
        refused = refusal(lambda n=number, a=attempt: one.ready(n, a, BASE, 9, 10, 1.0))
        assert refused.rule == "attempt"
    assert one.ready(3, 3, BASE, 9, 10, 1.0).attempt == 3
    assert one.ready(4, 1, BASE, 9, 10, 1.0).round == 4


# --- MaskedInput


def forwarded(sites: Federation) -> dict[str, ForwardedShares]:
    return sites.share(sites.begin())


def test_shares_replayed_to_another_site(sites: Federation) -> None:
    way = forwarded(sites)
    mixed = {**way["site-00"].sealed, "site-01": way["site-02"].sealed["site-01"]}
    changed = {"site-00": dataclasses.replace(way["site-00"], sealed=mixed)}
    refused = refusal(lambda: sites.mask("site-00", changed))
    assert refused.rule == "shares"
    assert "site-01" in str(refused)


def test_shares_for_another_site_or_from_strangers(sites: Federation) -> None:
    way = forwarded(sites)
    assert refusal(lambda: sites.mask("site-00", {"site-00": way["site-01"]})).rule == "another site"
    own = {**way["site-00"].sealed, "site-00": way["site-01"].sealed["site-02"]}
    strangers = {**way["site-00"].sealed, "site-99": way["site-01"].sealed["site-02"]}
    for sealed in (own, strangers):
        changed = {"site-00": dataclasses.replace(way["site-00"], sealed=sealed)}
        assert refusal(lambda changed=changed: sites.mask("site-00", changed)).rule == "unknown site"


def test_shares_of_fewer_than_t_sites(sites: Federation) -> None:
    way = forwarded(sites)["site-00"]
    few = dataclasses.replace(way, sealed={"site-01": way.sealed["site-01"]})
    refused = refusal(lambda: sites.mask("site-00", {"site-00": few}))
    assert refused.rule == "too few sites"
    assert "2 of 4 sites, expected at least 3" in str(refused)


def test_masked_for_one_set_of_sites_alone(sites: Federation) -> None:
    way = forwarded(sites)["site-00"]
    sites.mask("site-00", {"site-00": way})
    fewer = {name: sealed for name, sealed in way.sealed.items() if name != "site-03"}
    changed = {"site-00": dataclasses.replace(way, sealed=fewer)}
    assert refusal(lambda: sites.mask("site-00", changed)).rule == "masked once"


@pytest.mark.attack("two updates under the same masks: their difference is plain", "server", "site's refusal")
def test_one_update_an_attempt(sites: Federation) -> None:
    way = forwarded(sites)
    before = sites.mask("site-00", way)
    again = sites.mask("site-00", way)
    assert again.digest == before.digest
    sites.updates["site-00"]["b.bias"][0] *= 0.5
    assert refusal(lambda: sites.mask("site-00", way)).rule == "masked once"


# --- ConsistencyCheck


def there(sites: Federation, lost: int = 0) -> Survivors:
    return sites.upload(forwarded(sites), sites.names[lost:])


def test_two_sets_of_survivors(sites: Federation) -> None:
    survivors = there(sites)
    one = first(sites)
    assert one.confirm(survivors) is one.confirm(survivors)
    fewer = dataclasses.replace(survivors, sites=survivors.sites[:3])
    assert refusal(lambda: one.confirm(fewer)).rule == "second survivors"


def test_survivors_that_are_too_few_unknown_or_twice(sites: Federation) -> None:
    survivors = there(sites)
    for names, rule in (
        (survivors.sites[:2], "too few sites"),
        (survivors.sites[1:], "own entry"),
        ((*survivors.sites, "site-99"), "unknown site"),
        ((*survivors.sites, "site-03"), "a name twice"),
        (tuple(reversed(survivors.sites)), "a name twice"),
    ):
        changed = dataclasses.replace(survivors, sites=names)
        assert refusal(lambda changed=changed: first(sites).confirm(changed)).rule == rule
    assert refusal(lambda: first(sites).confirm(dataclasses.replace(survivors, attempt=2))).rule == "attempt"


def test_survivors_below_the_policy() -> None:
    """The roster is large enough, and the sum is not."""
    sites = Federation(5, rules=Rules(smallest_sum=5))
    survivors = Survivors(1, 1, tuple(sites.names[:4]))
    way = forwarded(sites)
    sites.mask("site-00", way)
    refused = refusal(lambda: first(sites).confirm(survivors))
    assert "the sum has 4 sites, expected at least 5" in str(refused)


# --- Unmasking


def test_fewer_than_t_signatures(sites: Federation) -> None:
    survivors = there(sites)
    signatures = {name: sites.participants[name].confirm(survivors).signature for name in sites.names}
    few = dict(list(signatures.items())[: threshold(SITES) - 1])
    refused = refusal(lambda: first(sites).reveal(Confirmations(1, 1, few)))
    assert refused.rule == "too few sites"
    assert "confirmations of 2 of 4 sites, expected at least 3" in str(refused)
    without = {name: signature for name, signature in signatures.items() if name != "site-00"}
    assert refusal(lambda: first(sites).reveal(Confirmations(1, 1, without))).rule == "own entry"
    stranger = {**signatures, "site-99": signatures["site-01"]}
    assert refusal(lambda: first(sites).reveal(Confirmations(1, 1, stranger))).rule == "unknown site"


@pytest.mark.attack("two sets of survivors: one secret of a site each", "server", "site's refusal: signature")
def test_signatures_over_two_sets(sites: Federation) -> None:
    """With both of a site's secrets the server could unmask its update."""
    survivors = there(sites)
    fewer = dataclasses.replace(survivors, sites=survivors.sites[:3])
    signatures = {
        name: sites.participants[name].confirm(fewer if name == "site-01" else survivors).signature
        for name in sites.names
    }
    refused = refusal(lambda: first(sites).reveal(Confirmations(1, 1, signatures)))
    assert refused.rule == "signature"
    assert "site-01" in str(refused)


def test_a_roster_of_its_own_for_each_site() -> None:
    """Rosters differ by weights: in one the first site counts as nearly the whole sum."""
    sites = Federation(4)
    roster = sites.begin()
    heavier = signed_again(roster.readies[1], cases=1)
    readies = (roster.readies[0], heavier, *roster.readies[2:])
    cases = {ready.site: ready.cases for ready in readies}
    weights = {name: count / sum(cases.values()) for name, count in cases.items()}
    told = dict.fromkeys(sites.names, roster)
    told["site-00"] = dataclasses.replace(roster, readies=readies, weights=weights)
    shares = [one.share_keys(told[name]) for name, one in sites.participants.items()]
    survivors = sites.upload(sites.aggregator.forward(shares), sites.names)
    signatures = {name: one.confirm(survivors).signature for name, one in sites.participants.items()}
    for one in sites.participants.values():
        assert refusal(lambda one=one: one.reveal(Confirmations(1, 1, signatures))).rule == "signature"


def test_never_both_secrets_of_a_site(sites: Federation) -> None:
    survivors = there(sites, lost=1)
    confirmations = sites.confirm(survivors)
    for reveal in sites.reveal(confirmations, survivors.sites):
        assert set(reveal.seeds) == set(survivors.sites)
        assert set(reveal.keys) == {"site-00"}


def test_revealed_once_a_round(sites: Federation) -> None:
    """The same answer again; and neither its round nor its update ever again."""
    survivors = there(sites)
    confirmations = sites.confirm(survivors)
    one = first(sites)
    assert one.reveal(confirmations) is one.reveal(confirmations)
    assert refusal(lambda: one.ready(1, 2, BASE, 9, 10, 1.0)).rule == "revealed"
    one.reveal(confirmations)
    sites.aggregator.unmask(sites.reveal(confirmations, survivors.sites))
    way = sites.share(sites.begin(2))
    assert refusal(lambda: sites.mask("site-00", way)).rule == "revealed"
    sites.train(2)
    way = sites.share(sites.begin(3))
    sites.mask("site-00", way)


def test_secrets_are_dropped_after_reveal(sites: Federation) -> None:
    survivors = there(sites)
    sites.reveal(sites.confirm(survivors), survivors.sites)
    kept = vars(vars(first(sites))["_attempt"])
    assert (kept["private"], kept["seed"], kept["held"]) == (b"", b"", {})
    assert all(secret not in repr(kept) for secret in ("private=b'\\x", "seed=b'\\x"))


# --- order, and each field


def test_steps_out_of_order(sites: Federation) -> None:
    one = first(sites)
    roster = sites.begin()
    way = sites.share(roster, sites.names[1:])
    own = ForwardedShares("site-00", 1, 1, {name: bytes(82) for name in sites.names[1:]})
    for act in (
        lambda: one.mask(own, sites.updates["site-00"]),
        lambda: one.confirm(Survivors(1, 1, tuple(sites.names))),
        lambda: one.reveal(Confirmations(1, 1, {"site-00": b"signature"})),
        lambda: sites.participants["site-01"].confirm(Survivors(1, 1, tuple(sites.names[1:]))),
    ):
        assert refusal(act).rule == "order"
    started_again = sites.participant("site-00")
    for act in (
        lambda: started_again.share_keys(roster),
        lambda: started_again.mask(own, sites.updates["site-00"]),
        lambda: started_again.confirm(Survivors(1, 1, tuple(sites.names))),
        lambda: started_again.reveal(Confirmations(1, 1, {"site-00": b"signature"})),
    ):
        refused = refusal(act)
        assert refused.rule == "order"
        assert "was started again" in str(refused)
    assert set(way) == set(sites.names[1:])


def _flipped(value: object) -> object:
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    if isinstance(value, str):
        return value + "x"
    return value + 1 if isinstance(value, int) else value * 1.5  # type: ignore[operator]


@pytest.mark.parametrize("name", ["job", "plan_digest", "site", "public_key", "signature"])
def test_each_field_of_an_advertisement(sites: Federation, name: str) -> None:
    value = getattr(sites.meet()[1], name)
    refusal(lambda: first(sites).learn_peers(peers_with(sites, **{name: _flipped(value)})))


@pytest.mark.parametrize(
    "name", ["site", "round", "attempt", "base_digest", "cases", "steps", "norm", "public_key", "signature"]
)
def test_each_field_of_ready(sites: Federation, name: str) -> None:
    roster = sites.begin()
    value = getattr(roster.readies[1], name)
    refusal(lambda: first(sites).share_keys(swapped(roster, 1, **{name: _flipped(value)})))


def test_each_byte_of_sealed_shares(sites: Federation) -> None:
    way = forwarded(sites)["site-00"]
    for place in range(0, 82, 9):
        sealed = dict(way.sealed)
        sealed["site-02"] = bytes(byte ^ (at == place) for at, byte in enumerate(sealed["site-02"]))
        changed = {"site-00": dataclasses.replace(way, sealed=sealed)}
        assert refusal(lambda changed=changed: sites.mask("site-00", changed)).rule == "shares"


def test_each_field_of_the_later_messages(sites: Federation) -> None:
    survivors = there(sites)
    signatures = {name: sites.participants[name].confirm(survivors).signature for name in sites.names}
    for name in sites.names:
        changed = Confirmations(1, 1, {**signatures, name: _flipped(signatures[name])})  # type: ignore[dict-item]
        assert refusal(lambda changed=changed: first(sites).reveal(changed)).rule == "signature"
    for changed in (Confirmations(2, 1, signatures), Confirmations(1, 2, signatures)):
        assert refusal(lambda changed=changed: first(sites).reveal(changed)).rule == "attempt"


def test_a_confirmation_of_another_site_does_not_count(sites: Federation) -> None:
    survivors = there(sites)
    right = [sites.participants[name].confirm(survivors) for name in sites.names]
    stolen = Confirmation("site-03", 1, 1, right[0].signature)
    assert set(sites.aggregator.confirmations([*right[:3], stolen]).signatures) == set(sites.names[:3])
    assert "site-03" in sites.aggregator.refused
