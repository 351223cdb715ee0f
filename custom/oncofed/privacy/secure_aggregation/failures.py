"""Refusals of a participant and failures of an aggregation.

Their messages name a rule and sites, never a key, a share or a word of an update.
"""

from __future__ import annotations

from collections.abc import Iterable

from oncofed.errors import FederationError


class ProtocolError(FederationError):
    """A message breaks the protocol: nothing more is answered.

    Attributes:
        rule: the rule that it breaks, one word or two, for logs and tests.
        text: what was found, and what was expected.

    Args:
        rule: likewise.
        text: likewise.
    """

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"secure aggregation ({rule}): {text}")
        self.rule, self.text = rule, text


class AggregationFailed(FederationError):  # noqa: N818 - what happened, not who erred
    """An attempt at a sum failed.

    Attributes:
        step: of the protocol, such as ``MaskedInput``.
        sites: that are missing or at fault, sorted; empty if unknown.
        revealed: whether shares may have been revealed. If not, a new attempt with new keys may begin; if so, the same
            survivors may be asked again, and nothing else: sites mask no update of this round again.

    Args:
        step: likewise.
        text: what was found, and what was expected.
        sites: likewise.
        revealed: likewise.
    """

    def __init__(self, step: str, text: str, sites: Iterable[str] = (), *, revealed: bool = False) -> None:
        super().__init__(f"secure aggregation failed at {step}: {text}")
        self.step = step
        self.sites = tuple(sorted(sites))
        self.revealed = revealed
