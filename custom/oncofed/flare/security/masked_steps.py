"""What a job's secure aggregation may send from a site.

Masked words and sealed shares cannot be told from anything else. So each step must follow from what this process
checked, verified and masked before, by its own names and digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any

import torch

from oncofed.client.secure_aggregation import Identity, told_norm
from oncofed.errors import PolicyError
from oncofed.messages.secure_aggregation import MaskedResult, SecureStep, SecureStepResult, ShareKeysRequest, read_ready
from oncofed.models.weights import Weights, digest_of
from oncofed.privacy.secure_aggregation import Confirmation, KeyShares, MaskedInput, Ready, Reveal
from oncofed.privacy.secure_aggregation.checks import check_advertisement

# By which two norms of the same update may differ, and then be rounded up to other digits.
_LAST_BITS = 1e-9
_DIGEST = re.compile(r"[a-z0-9-]{1,16}:[0-9a-f]{32,128}")
_STEPS = {frozenset(field.name for field in fields(kind)): kind for kind in (KeyShares, Confirmation, Reveal)}


@dataclass(frozen=True, kw_only=True)
class OwnKeys:
    """What a site's messages must say of itself.

    Attributes:
        job: its identifier.
        plan_digest: as ``messages.secure_aggregation.plan_digest``.
        identity: by the site's kit.
    """

    job: str
    plan_digest: str
    identity: Identity


class MaskedSteps:
    """Holds a site's messages to the protocol's order, its names and its digests.

    Args:
        own: of the site; None: nothing leaves masked.
        summed: tensors of a round's sum, by name.
        scored: those of sums of scores alone, one in each.
        bits: of a word.
    """

    def __init__(self, own: OwnKeys | None, summed: Weights, scored: Weights, bits: int = 32) -> None:
        self._own, self._of_round, self._of_scores = own, dict(summed), dict(scored)
        self._dtypes = {torch.int32, torch.int16} if bits == 16 else {torch.int32}
        self._summed, self._names = self._of_round, [set(self._of_round)]
        self._norm: float | None = None
        self._bound: float | None = None
        self._figures = b""
        self._checked = False
        self._ready: Ready | None = None
        self._peers: frozenset[str] = frozenset()
        self._masked: tuple[str, Any] | None = None

    # --- what this process did

    def note_checked(self, norm: float | None, figures: bytes = b"") -> None:
        """Note that an update was checked, or scores were: a READY may follow.

        Args:
            norm: of the update; None: there is none.
            figures: that its scores have, as ``Ready.figures``.
        """
        self._checked, self._norm, self._bound, self._figures = True, norm, None, figures

    def note_bound(self, bound: float) -> None:
        """Note the length that the round's model allows, which READY tells in place of the update's own.

        Args:
            bound: of noise that sites make together; see ``SharedNoise.longest``.
        """
        self._bound = bound

    def note_answer(self, request: SecureStep, answer: SecureStepResult | MaskedResult) -> None:
        """Note whom a step that was taken verified, or what it masked."""
        if isinstance(request, ShareKeysRequest):
            self._peers = frozenset(str(peer["site"]) for peer in request.content["peers"])
        if isinstance(answer, MaskedResult):
            self._masked = str(digest_of(dict(answer.words))), answer.content.get("digest")

    # --- what would leave

    def check_ready(self, content: Mapping[str, Any], counts: tuple[int, int] = (1, 1)) -> dict[str, Any]:
        """Check a READY.

        Args:
            content: as ``TrainResult.ready``.
            counts: of cases and steps, as the result beside it tells them; one each of scores.

        Raises:
            PolicyError: it is not this site's, or follows no update that was checked.
            FederationError: it is malformed, or not signed by this site's key.
        """
        own = self._require_own()
        advertisement, ready = read_ready(content, own.identity.site)
        if advertisement.certificates != own.identity.certificates:
            raise PolicyError("other certificates than those of the site's kit")
        key = check_advertisement(advertisement, own.job, own.plan_digest, own.identity.verify)
        if not key.is_signed(ready.signed_part(own.job, own.plan_digest), ready.signature):
            raise PolicyError("what it signs is not signed by the key of the site's kit")
        if not _DIGEST.fullmatch(ready.base_digest):
            raise PolicyError("the digest of the model is none, expected an algorithm's name and hexadecimal digits")
        if (ready.cases, ready.steps) != counts:
            raise PolicyError("it signs other counts of cases and steps than it sends")
        if not self._checked:
            raise PolicyError("no update was checked before it")
        if ready.figures != self._figures:
            raise PolicyError("it names other figures than the scores have that were checked")
        if self._ready is None or (ready.round, ready.attempt) != (self._ready.round, self._ready.attempt):
            self._masked = None
        self._checked, self._ready = False, ready
        self._summed = self._of_scores if self._norm is None else self._of_round
        self._names = [{name} for name in self._of_scores] if self._norm is None else [set(self._of_round)]
        return {"step": "Ready"}

    def require_norm(self) -> None:
        """Refuse a READY that declares another length than follows: its digits could say anything.

        That is the checked update's, or with noise that sites make together what the round's model allows.

        Raises:
            PolicyError: it does.
        """
        assert self._ready
        if self._norm is None:
            raise PolicyError("no update was checked before it")
        if self._bound is not None:
            if self._ready.norm != self._bound:
                raise PolicyError("it declares another length than the round's model allows")
        elif self._ready.norm not in {told_norm(self._norm * (1 + off)) for off in (-_LAST_BITS, 0.0, _LAST_BITS)}:
            raise PolicyError("it declares another length than the update has that was checked")

    def check_step(self, result: SecureStepResult) -> dict[str, Any]:
        """Check shares, a confirmation or what is revealed.

        Raises:
            PolicyError: it follows no READY, or names others than the sites that were verified.
            FederationError: it is malformed.
        """
        kind = _STEPS.get(frozenset(result.content))
        if kind is None:
            raise PolicyError("a step of secure aggregation sends its own message, and nothing else")
        message = kind.from_fields(result.content)
        ready = self._check_turn(message)
        if isinstance(message, Confirmation) and len(message.signature) != len(ready.signature):
            raise PolicyError(f"a signature of {len(message.signature)} bytes, expected {len(ready.signature)}")
        if isinstance(message, KeyShares):
            self._check_names(message.sealed.keys(), self._peers - {message.site})
        elif isinstance(message, Reveal):
            self._check_names(message.seeds.keys(), self._peers)
            self._check_names(message.keys.keys(), self._peers - message.seeds.keys())
        return {"step": kind.__name__}

    def check_words(self, result: MaskedResult) -> dict[str, Any]:
        """Check masked words: the update itself was checked before it was masked.

        Raises:
            PolicyError: they are not the words that this process masked after its READY.
            FederationError: the message is malformed.
        """
        message = MaskedInput.from_fields({**result.content, "words": dict(result.words)})
        if set(message.words) not in self._names:
            raise PolicyError("the masked words are not those of the job's weights")
        for name, words in sorted(message.words.items()):
            if words.dtype not in self._dtypes or words.shape != self._summed[name].shape:
                expected = " or ".join(sorted(str(one).removeprefix("torch.") for one in self._dtypes))
                raise PolicyError(
                    f"{name} is {tuple(words.shape)} {words.dtype}, expected "
                    f"{tuple(self._summed[name].shape)} masked words as {expected}"
                )
        self._check_turn(message)
        if not any(bool(words.any()) for words in message.words.values()):
            raise PolicyError("all words are zero, expected an update under masks")
        digest = str(digest_of(message.words))
        if (digest, message.digest) != self._masked:
            raise PolicyError("words that this process did not mask")
        return {"tensors": len(message.words), "digest": digest, "masked": True}

    def _require_own(self) -> OwnKeys:
        if self._own is None:
            raise PolicyError("the job has no secure aggregation")
        return self._own

    def _check_turn(self, message: KeyShares | Confirmation | Reveal | MaskedInput) -> Ready:
        """Refuse what is not of this site's last READY."""
        site = self._require_own().identity.site
        ready = self._ready
        if ready is None or (message.site, message.round, message.attempt) != (site, ready.round, ready.attempt):
            raise PolicyError("a step of secure aggregation that no READY of this site preceded")
        return ready

    def _check_names(self, found: AbstractSet[str], known: AbstractSet[str]) -> None:
        if unknown := len(found - known):
            raise PolicyError(f"{unknown} names that are of no verified site of this round, or twice")
