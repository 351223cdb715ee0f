"""Sites and a server that sum securely, in one process."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oncofed.privacy.secure_aggregation import (
    Aggregator,
    Confirmations,
    KeyAdvertisement,
    Layout,
    MaskedInput,
    Participant,
    Reveal,
    Roster,
    Rules,
    Sum,
    Survivors,
    VerifyKey,
    Weigh,
    by_cases,
)
from oncofed.privacy.secure_aggregation.ring import norm_of, quantise
from oncofed.privacy.secure_aggregation.summands import Summands

JOB, PLAN, BASE = "job-1", "plan-1", "base-1"


def secret_of(site: str) -> bytes:
    """Return a site's signing key: of a MAC, for RSA keys take long to make."""
    return hashlib.sha256(b"signs " + site.encode()).digest()


def mac_signer(site: str) -> Callable[[bytes], bytes]:
    """Return what signs for a site."""
    return lambda data: hmac.digest(secret_of(site), data, "sha256")


def mac_verify(advertisement: KeyAdvertisement) -> VerifyKey:
    """Give the key of any site."""
    site = advertisement.site
    return VerifyKey(site.upper(), lambda data, signature: hmac.compare_digest(mac_signer(site)(data), signature))


class Federation:
    """Sites with an update each, and an honest server.

    Each step is a method, so that a test can do one of them in another way.
    """

    def __init__(
        self,
        sites: int,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        seed: int = 0,
        rules: Rules | None = None,
        weigh: Weigh = by_cases,
        factors: Mapping[str, float] | None = None,
        bounds: Mapping[str, float] | None = None,
    ) -> None:
        self.names = [f"site-{number:02}" for number in range(sites)]
        self.rules = rules or Rules()
        self.weigh, self.factors, self.bounds = weigh, dict(factors or {}), dict(bounds or {})
        self.participants = {name: self.participant(name) for name in self.names}
        self.aggregator = Aggregator(
            JOB, PLAN, dataclasses.replace(self.rules, peers=None), verify=mac_verify, weigh=weigh
        )
        self.shapes = dict(shapes or {"a.weight": (3, 5), "b.bias": (7,)})
        self.train(seed)
        self.cases = {name: 5 + 3 * number for number, name in enumerate(self.names)}
        self.meet()

    def participant(self, name: str) -> Participant:
        """Return a site that was just started."""
        return Participant(
            JOB, PLAN, name, mac_signer(name), mac_verify, self.rules, certificates=b"PEM", weigh=self.weigh
        )

    def train(self, seed: int) -> None:
        """Make an update for each site."""
        made = torch.Generator().manual_seed(seed)
        self.updates = {
            name: {key: torch.randn(shape, generator=made) for key, shape in self.shapes.items()} for name in self.names
        }

    def meet(self) -> tuple[KeyAdvertisement, ...]:
        """Have all sites learn each other's keys."""
        known = self.aggregator.peers([one.advertise() for one in self.participants.values()])
        for one in self.participants.values():
            one.learn_peers(known)
        return known

    def norm(self, name: str) -> float:
        """Return the norm that a site declares."""
        plain = {k: v for k, v in self.updates[name].items() if not k.startswith(tuple(self.factors) or ("\0",))}
        return norm_of(plain)

    def begin(self, number: int = 1, attempt: int = 1, base: str = BASE) -> Roster:
        """Begin an attempt up to its roster."""
        self.aggregator.begin(number, attempt, base, Layout(self.shapes, self.factors, self.bounds))
        readies = [
            one.ready(number, attempt, base, self.cases[name], 10, self.norm(name))
            for name, one in self.participants.items()
        ]
        return self.aggregator.roster(readies)

    def share(self, roster: Roster, sharing: Sequence[str] | None = None) -> dict[str, Any]:
        """Have sites share their keys; all of them unless named."""
        return self.aggregator.forward(
            [self.participants[name].share_keys(roster) for name in (self.names if sharing is None else sharing)]
        )

    def mask(self, name: str, forwarded: Mapping[str, Any]) -> MaskedInput:
        """Have a site mask its update."""
        return self.participants[name].mask(forwarded[name], self.updates[name], self.factors, self.bounds)

    def upload(self, forwarded: Mapping[str, Any], uploading: Sequence[str]) -> Survivors:
        """Have sites upload their masked updates."""
        for name in uploading:
            self.aggregator.add(self.mask(name, forwarded))
        return self.aggregator.survivors()

    def confirm(self, survivors: Survivors, confirming: Sequence[str] | None = None) -> Confirmations:
        """Have survivors confirm; all of them unless named."""
        named = survivors.sites if confirming is None else confirming
        return self.aggregator.confirmations([self.participants[name].confirm(survivors) for name in named])

    def reveal(self, confirmations: Confirmations, revealing: Sequence[str]) -> list[Reveal]:
        """Have survivors reveal their shares."""
        return [self.participants[name].reveal(confirmations) for name in revealing]

    def run(self, *, unshared: int = 0, lost: int = 0, silent: int = 0, number: int = 1, attempt: int = 1) -> Sum:
        """Run a round.

        Args:
            unshared: sites lost before they shared their keys.
            lost: further ones lost before their upload.
            silent: further ones lost after it.
            number: of the round.
            attempt: of the round.
        """
        roster = self.begin(number, attempt)
        sharing = self.names[unshared:]
        survivors = self.upload(self.share(roster, sharing), sharing[lost:])
        there = survivors.sites[silent:]
        return self.aggregator.unmask(self.reveal(self.confirm(survivors, there), there))

    def ring_sum(self, result: Sum, roster_sites: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the sum of the quantised updates without any mask, in the ring."""
        summands = Summands(self.factors, self.bounds, self.rules.bits)
        total = sum(self.cases[name] for name in roster_sites or self.names)
        weights = {name: self.cases[name] / total for name in roster_sites or self.names}
        sums = {}
        for key in self.shapes:
            scale = summands.scale(key, weights)
            words = [
                quantise(self.updates[n][key], summands.factor(key, weights[n]), scale).long() for n in result.sites
            ]
            half = 1 << (scale.bits - 1)
            wrapped = (torch.stack(words).sum(0) + half) % (2 * half) - half
            sums[key] = (wrapped.double() * scale.step).float()
        return sums
