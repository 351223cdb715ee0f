"""Secure aggregation in one process: what each step costs.

Seconds are the processor's, in one thread: other work on the machine does not count. Sites sign with a MAC as long as
an RSA signature, whose own cost does not depend on the model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from oncofed.privacy.secure_aggregation import Aggregator, KeyAdvertisement, Layout, Participant, Rules, VerifyKey
from oncofed.privacy.secure_aggregation.fields import Message
from oncofed.privacy.secure_aggregation.ring import norm_of

_T = TypeVar("_T")
_JOB, _PLAN, _BASE = "bench", "plan", "base"
_TENSORS = 20
# Of 16 bits: 64 times the updates' root mean square.
_RMS, _BOUND = 1e-3, 0.064


class Attempt:
    """Sites with one update, and a server, up to the forwarded shares.

    Args:
        sites: that take part.
        floats: of the model.
        bits: of a word.

    Attributes:
        seconds: of each call so far, by step.
        sent: bytes that a site has sent so far besides the words.
    """

    def __init__(self, sites: int, floats: int, bits: int = 32) -> None:
        self.names = [f"site-{number:02}" for number in range(sites)]
        self.seconds: dict[str, list[float]] = {"share": [], "mask": [], "add": [], "unmask": []}
        self.sent = 0
        self.update = {f"layer{number:02}.weight": torch.randn(floats // _TENSORS) * _RMS for number in range(_TENSORS)}
        self.bounds = dict.fromkeys(self.update, _BOUND) if bits == 16 else {}
        rules = Rules(bits=bits)
        self._sites = {
            name: Participant(_JOB, _PLAN, name, _signer(name), _verify, rules, certificates=b"PEM")
            for name in self.names
        }
        self.server = Aggregator(_JOB, _PLAN, rules, verify=_verify)
        known = self.server.peers([one.advertise() for one in self._sites.values()])
        for one in self._sites.values():
            one.learn_peers(known)
        shapes = {name: tuple(value.shape) for name, value in self.update.items()}
        self.server.begin(1, 1, _BASE, Layout(shapes, {}, self.bounds))
        norm = norm_of(self.update)
        readies = [one.ready(1, 1, _BASE, 10, 10, norm) for one in self._sites.values()]
        roster = self.server.roster(readies)
        shares = [self._timed("share", functools.partial(one.share_keys, roster)) for one in self._sites.values()]
        self._forwarded = self.server.forward(shares)
        self._count(known[0], readies[0], shares[0])

    def mask(self, number: int = 0) -> dict[str, Tensor]:
        """Return a site's masked words."""
        name = self.names[number]
        one, way = self._sites[name], self._forwarded[name]
        self._masked = self._timed("mask", lambda: one.mask(way, self.update, {}, self.bounds))
        return self._masked.words

    def add(self, number: int) -> None:
        """Have the server add what was masked last, as if it were a site's."""
        masked = dataclasses.replace(self._masked, site=self.names[number])
        self._timed("add", lambda: self.server.add(masked))

    def finish(self, lost: int = 0) -> None:
        """Mask, add and unmask, and check the mean.

        Args:
            lost: sites that do not upload.
        """
        for number in range(lost, len(self.names)):
            self.mask(number)
            self.add(number)
        survivors = self.server.survivors()
        confirmed = [self._sites[name].confirm(survivors) for name in survivors.sites]
        confirmations = self.server.confirmations(confirmed)
        reveals = [self._sites[name].reveal(confirmations) for name in survivors.sites]
        self._count(confirmed[0], reveals[0])
        result = self._timed("unmask", lambda: self.server.unmask(reveals))
        mean, step = result.mean(), 2 * _BOUND / (1 << 16) if self.bounds else 2.0**-24
        for name, value in self.update.items():
            # Each site rounds by half a step of its share.
            assert (mean[name] - value).abs().max() <= len(self.names) * step, name

    def _timed(self, step: str, act: Callable[[], _T]) -> _T:
        begun = time.process_time()
        result = act()
        self.seconds[step].append(time.process_time() - begun)
        return result

    def _count(self, *messages: Message) -> None:
        self.sent += sum(_size(message.to_fields()) for message in messages)


def _signer(site: str) -> Callable[[bytes], bytes]:
    key = hashlib.sha256(site.encode()).digest()
    return lambda data: hmac.digest(key, data, "sha256") * 8


def _verify(advertisement: KeyAdvertisement) -> VerifyKey:
    sign = _signer(advertisement.site)
    return VerifyKey("AB", lambda data, signature: sign(data) == signature)


def _size(value: object) -> int:
    """Return the bytes of plain values; numbers as text."""
    if isinstance(value, Mapping):
        return sum(_size(name) + _size(one) for name, one in value.items())
    return len(value) if isinstance(value, bytes) else len(str(value))
