"""Server and sites are killed at any step, and go on or refuse."""

from __future__ import annotations

import copy

import pytest
import torch

from oncofed.privacy.secure_aggregation import AggregationFailed, Aggregator, Layout, ProtocolError
from secure_sums import BASE, JOB, PLAN, Federation, mac_verify


def restarted(sites: Federation, state: dict) -> None:
    """Put a new server in place of the old one."""
    sites.aggregator = Aggregator(JOB, PLAN, sites.rules, verify=mac_verify)
    sites.aggregator.restore(state)


@pytest.mark.parametrize("step", ["THERE", "SIGNATURES", "REVEAL"])
def test_a_server_killed_after_survivors_asks_for_the_same(step: str) -> None:
    sites = Federation(6, shapes={"w": (100,)})
    survivors = sites.upload(sites.share(sites.begin()), sites.names[1:])
    state = copy.deepcopy(sites.aggregator.state())
    if step != "THERE":
        confirmations = sites.confirm(survivors)
        state = copy.deepcopy(sites.aggregator.state()) if step == "REVEAL" else state
        sites.reveal(confirmations, survivors.sites[:3])
    restarted(sites, state)
    assert sites.aggregator.survivors() == survivors
    there = survivors.sites
    result = sites.aggregator.unmask(sites.reveal(sites.confirm(survivors), there))
    assert torch.equal(result.tensors["w"], sites.ring_sum(result)["w"])
    assert result.sites == there


def test_a_server_killed_before_begins_a_new_attempt() -> None:
    sites = Federation(4)
    way = sites.share(sites.begin())
    sites.aggregator.add(sites.mask("site-00", way))
    with pytest.raises(AggregationFailed, match="the step before was left out"):
        sites.aggregator.state()
    sites.aggregator = Aggregator(JOB, PLAN, sites.rules, verify=mac_verify)
    sites.meet()
    result = sites.run(attempt=2)
    assert result.sites == tuple(sites.names)


def test_what_was_kept_is_of_this_job_and_holds_no_new_survivors() -> None:
    sites = Federation(4)
    way = sites.share(sites.begin())
    sites.upload(way, sites.names[:3])
    state = copy.deepcopy(sites.aggregator.state())
    late = sites.mask("site-03", way)
    restarted(sites, state)
    with pytest.raises(ProtocolError, match="too late"):
        sites.aggregator.add(late)
    assert sites.aggregator.survivors().sites == tuple(sites.names[:3])
    with pytest.raises(AggregationFailed, match="another job or plan"):
        Aggregator("job-2", PLAN, sites.rules, verify=mac_verify).restore(state)


def test_a_server_that_may_have_revealed_begins_no_other_attempt() -> None:
    sites = Federation(4)
    survivors = sites.upload(sites.share(sites.begin()), sites.names)
    state = copy.deepcopy(sites.aggregator.state())
    sites.confirm(survivors)  # which the state does not know
    restarted(sites, state)
    with pytest.raises(AggregationFailed, match="may have been revealed") as failed:
        sites.aggregator.begin(1, 2, BASE, Layout(sites.shapes))
    assert failed.value.revealed
    sites.aggregator.begin(2, 1, BASE, Layout(sites.shapes))


def test_an_aggregator_without_an_attempt() -> None:
    with pytest.raises(AggregationFailed, match="begin one"):
        Federation(3).aggregator.survivors()


@pytest.mark.parametrize("step", ["ready", "shared", "masked", "confirmed"])
def test_a_site_that_was_started_again_is_lost_for_the_attempt(step: str) -> None:
    """And takes part in the next round, with a new key; the others' sum is as it should be."""
    sites = Federation(4)
    rest = sites.names[1:]
    roster = sites.begin()

    def start_again() -> None:
        state = sites.participants["site-00"].state()
        sites.participants["site-00"] = sites.participant("site-00")
        sites.participants["site-00"].restore(state)

    if step == "ready":
        start_again()
        with pytest.raises(ProtocolError, match="was started again"):
            sites.participants["site-00"].share_keys(roster)
    way = sites.share(roster, rest if step == "ready" else sites.names)
    if step == "shared":
        start_again()
        with pytest.raises(ProtocolError, match="was started again"):
            sites.mask("site-00", way)
    survivors = sites.upload(way, sites.names if step in {"masked", "confirmed"} else rest)
    if step == "masked":
        start_again()
        with pytest.raises(ProtocolError, match="was started again"):
            sites.participants["site-00"].confirm(survivors)
    confirmations = sites.confirm(survivors, sites.names if step == "confirmed" else rest)
    if step == "confirmed":
        start_again()
        with pytest.raises(ProtocolError, match="was started again"):
            sites.participants["site-00"].reveal(confirmations)
    result = sites.aggregator.unmask(sites.reveal(confirmations, rest))
    assert torch.equal(result.tensors["b.bias"], sites.ring_sum(result)["b.bias"])
    assert ("site-00" in result.sites) == (step in {"masked", "confirmed"})

    sites.meet()
    with pytest.raises(ProtocolError) as refused:
        sites.participants["site-00"].ready(1, 1, BASE, 5, 10, 1.0)
    assert refused.value.rule == "attempt"
    sites.train(9)
    assert sites.run(number=2).sites == tuple(sites.names)


@pytest.mark.attack("a site is started again, and asked for the same update", "server", "site's refusal: revealed")
def test_a_site_remembers_that_it_revealed() -> None:
    sites = Federation(4)
    sites.run()
    state = sites.participants["site-00"].state()
    assert set(state) == {"last", "revealed_round", "revealed_updates"}
    sites.participants["site-00"] = sites.participant("site-00")
    sites.participants["site-00"].restore(state)
    sites.meet()
    with pytest.raises(ProtocolError) as refused:
        sites.participants["site-00"].ready(1, 2, BASE, 5, 10, 1.0)
    assert refused.value.rule == "revealed"
    way = sites.share(sites.begin(2))
    with pytest.raises(ProtocolError, match="this very update") as refused:
        sites.mask("site-00", way)
    assert refused.value.rule == "revealed"


def test_peers_learned_again_end_an_attempt_only_if_they_changed() -> None:
    sites = Federation(4)
    roster = sites.begin()
    sites.meet()
    sites.participants["site-00"].share_keys(roster)
    sites.participants["site-03"] = sites.participant("site-03")
    sites.meet()
    with pytest.raises(ProtocolError, match="no attempt under way"):
        sites.participants["site-00"].share_keys(roster)
    assert sites.run(attempt=2).sites == tuple(sites.names)


def test_ready_is_repeated_for_the_same_offer() -> None:
    one = Federation(3).participants["site-00"]
    said = one.ready(1, 1, BASE, 5, 10, 1.0)
    assert one.ready(1, 1, BASE, 5, 10, 1.0) is said
    with pytest.raises(ProtocolError, match="expected a higher one"):
        one.ready(1, 1, BASE, 6, 10, 1.0)


def test_what_is_remembered_never_goes_back() -> None:
    """An older state does not make an attempt new again: its shares would have the same nonces."""
    one = Federation(3).participants["site-00"]
    older = one.state()
    one.ready(4, 2, BASE, 5, 10, 1.0)
    one.restore(older)
    with pytest.raises(ProtocolError, match="expected a higher one"):
        one.ready(4, 2, BASE, 5, 10, 1.0)
