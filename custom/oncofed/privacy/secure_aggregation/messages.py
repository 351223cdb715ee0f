"""The messages of the protocol, in their order.

Each is a frozen dataclass of plain values and tensors. ``to_fields`` gives a plain dictionary for a wire's codec,
``from_fields`` takes one from a stranger: every field is checked for its type, length and range before anything else
reads it. What a site signs is a ``transcript``: a label and its fields, each preceded by its length, so that no two
statements have the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.fields import Message, by_name, integer, message, octets, real, several, text
from oncofed.privacy.secure_aggregation.fields import words as words_of_ring

# Version of what sites send and sign, and of the labels of their keys.
PROTOCOL = 2
KEY_BYTES = 32
# A share is a number below 2^256 + 297.
SHARE_BYTES = 33
# Two shares and the tag of Poly1305.
SEALED_BYTES = 2 * SHARE_BYTES + 16
# The rounding errors of more would exceed the room that the ring leaves for them.
MOST_SITES = 255
_MOST_COUNT = 1 << 40
# Bytes of bits, one for each figure of a job.
_MOST_FIGURES = 1 << 12

_name, _tensor_name = text(200), text(1000)
_signature, _share, _sealed = octets(1, 1024), octets(SHARE_BYTES, SHARE_BYTES), octets(SEALED_BYTES, SEALED_BYTES)


def _protocol(value: Any) -> int:
    if integer(1, 1 << 16)(value) != PROTOCOL:
        raise ProtocolError(
            "another release",
            f"expected protocol {PROTOCOL} of secure aggregation, found {value}: install the same release of oncofed "
            "at the server and at all sites",
        )
    return PROTOCOL


Name = Annotated[str, _name]
Round = Annotated[int, integer(0, 1 << 32)]
Attempt = Annotated[int, integer(1, 1 << 32)]
Key = Annotated[bytes, octets(KEY_BYTES, KEY_BYTES)]
Digest = Annotated[bytes, octets(32, 32)]
Signature = Annotated[bytes, _signature]
Count = Annotated[int, integer(0, _MOST_COUNT)]
Sealed = Annotated[dict[str, bytes], by_name(_name, _sealed, 1, MOST_SITES)]


def transcript(label: str, *values: str | int | float | bytes) -> bytes:
    """Return a statement to sign or to hash: unambiguous bytes.

    Each part, the label too, follows its length (4 bytes, big-endian). Text is UTF-8, an integer its decimal digits, a
    float its eight bytes (IEEE 754, big-endian).
    """
    parts = [f"oncofed secagg {PROTOCOL} {label}".encode()]
    for value in values:
        if isinstance(value, bytes):
            parts.append(value)
        elif isinstance(value, float):
            parts.append(struct.pack(">d", value))
        else:
            parts.append(str(value).encode())
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


# --- AdvertiseKeys


@dataclass(frozen=True)
class KeyAdvertisement(Message):
    """A site's key for this job (HELLO).

    Attributes:
        protocol: version.
        job: its identifier.
        plan_digest: of what the job's sites run.
        site: name.
        public_key: X25519, of the channels to other sites.
        signature: of ``signed_part``, by the key of the certificate.
        certificates: chain in PEM, the site's first.
    """

    protocol: Annotated[int, _protocol]
    job: Name
    plan_digest: Name
    site: Name
    public_key: Key
    signature: Signature
    certificates: Annotated[bytes, octets(1, 1 << 16)]

    def signed_part(self) -> bytes:
        """Return the bytes that the site signs."""
        return transcript("hello", self.protocol, self.job, self.plan_digest, self.site, self.public_key)


@dataclass(frozen=True)
class Ready(Message):
    """A site has trained, and offers a key for this attempt (READY).

    Attributes:
        site: name.
        round: number.
        attempt: number, from 1.
        base_digest: of the model with which it began, and of all else that all sites must share (factors, bounds).
        cases: training cases.
        steps: optimizer steps.
        norm: Euclidean norm of the update, all tensors without a factor of their own.
        public_key: X25519, of the pair masks; new in each attempt.
        signature: of ``signed_part``.
        figures: which figures of its scores the site has, a bit each; no bit: it has no score.
    """

    site: Name
    round: Round
    attempt: Attempt
    base_digest: Name
    cases: Annotated[int, integer(1, _MOST_COUNT)]
    steps: Count
    norm: Annotated[float, real(0.0, 1e30)]
    public_key: Key
    signature: Signature
    figures: Annotated[bytes, octets(0, _MOST_FIGURES)] = b""

    def signed_part(self, job: str, plan_digest: str) -> bytes:
        """Return the bytes that the site signs."""
        facts = (self.base_digest, self.cases, self.steps, self.norm, self.public_key, self.figures)
        return transcript("ready", job, plan_digest, self.site, self.round, self.attempt, *facts)


# --- ShareKeys


@dataclass(frozen=True)
class Roster(Message):
    """Who takes part in an attempt: U of the paper.

    Attributes:
        round: number.
        attempt: number.
        readies: of all sites that take part, sorted by name.
        weights: each site's share of the mean; every site derives them from the READYs, and refuses others.
        scored: sites whose scores are in the sum, sorted; empty: it has none.
    """

    round: Round
    attempt: Attempt
    readies: Annotated[tuple[Ready, ...], several(message(Ready), 1, MOST_SITES)]
    weights: Annotated[dict[str, float], by_name(_name, real(0.0, 1e6), 1, MOST_SITES)]
    scored: Annotated[tuple[str, ...], several(_name, 0, MOST_SITES)] = ()

    def digest(self, job: str, plan_digest: str) -> bytes:
        """Return what every site signs before it reveals anything."""
        parts = [part for ready in self.readies for part in (ready.signed_part(job, plan_digest), ready.signature)]
        weights = [part for site in sorted(self.weights) for part in (site, self.weights[site])]
        stated = transcript("roster", len(self.readies), *parts, *weights, len(self.scored), *self.scored)
        return hashlib.sha256(stated).digest()


@dataclass(frozen=True)
class KeyShares(Message):
    """Shares of a site's two secrets, sealed for each other site.

    Attributes:
        site: whose secrets.
        round: number.
        attempt: number.
        commitment: to the seed of its own mask.
        sealed: 82 bytes for each other site of the roster, by its name.
    """

    site: Name
    round: Round
    attempt: Attempt
    commitment: Digest
    sealed: Sealed


# --- MaskedInput


@dataclass(frozen=True)
class ForwardedShares(Message):
    """The sealed shares that others sent to one site (FORWARD).

    Attributes:
        site: for whom.
        round: number.
        attempt: number.
        sealed: by sender; with the site itself they are U2 of the paper: only their masks are applied.
    """

    site: Name
    round: Round
    attempt: Attempt
    sealed: Sealed


@dataclass(frozen=True)
class MaskedInput(Message):
    """A site's masked update.

    Attributes:
        site: whose.
        round: number.
        attempt: number.
        words: of the ring by tensor's name, int32 or int16; uniform to whoever lacks the masks.
        digest: of the words (``ring.words_digest``).
    """

    site: Name
    round: Round
    attempt: Attempt
    words: Annotated[dict[str, Tensor], by_name(_tensor_name, words_of_ring, 1, 100_000)]
    digest: Digest


# --- ConsistencyCheck


@dataclass(frozen=True)
class Survivors(Message):
    """Whose masked update came whole (THERE): V, the paper's U3.

    Attributes:
        round: number.
        attempt: number.
        sites: sorted.
    """

    round: Round
    attempt: Attempt
    sites: Annotated[tuple[str, ...], several(_name, 1, MOST_SITES)]


def confirmed_part(job: str, roster_digest: bytes, shared: tuple[str, ...], survivors: Survivors) -> bytes:
    """Return what a site signs before anything is revealed.

    The paper signs the survivors alone. With the roster and those who shared, a server that told different sites
    different rosters, and with them different weights, gets no signatures that fit together either.

    Args:
        job: its identifier.
        roster_digest: of the roster that the site got.
        shared: whose sealed shares it got, and itself; sorted.
        survivors: as the server names them.
    """
    names: tuple[str | int, ...] = (len(shared), *shared, len(survivors.sites), *survivors.sites)
    return transcript("confirm", job, survivors.round, survivors.attempt, roster_digest, *names)


@dataclass(frozen=True)
class Confirmation(Message):
    """A site's signature of the survivors.

    Attributes:
        site: who signs.
        round: number.
        attempt: number.
        signature: of ``confirmed_part``.
    """

    site: Name
    round: Round
    attempt: Attempt
    signature: Signature


# --- Unmasking


@dataclass(frozen=True)
class Confirmations(Message):
    """At least t signatures of the same survivors (SIGNATURES).

    Attributes:
        round: number.
        attempt: number.
        signatures: by site.
    """

    round: Round
    attempt: Attempt
    signatures: Annotated[dict[str, bytes], by_name(_name, _signature, 1, MOST_SITES)]


@dataclass(frozen=True)
class Reveal(Message):
    """A site's shares: one secret of each site, never both.

    Attributes:
        site: who reveals.
        round: number.
        attempt: number.
        seeds: shares of the survivors' seeds, by site.
        keys: shares of the lost sites' keys, by site.
    """

    site: Name
    round: Round
    attempt: Attempt
    seeds: Annotated[dict[str, bytes], by_name(_name, _share, 1, MOST_SITES)]
    keys: Annotated[dict[str, bytes], by_name(_name, _share, 0, MOST_SITES)]
