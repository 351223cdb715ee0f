"""Which sums a site helped to unmask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from oncofed.privacy.secure_aggregation import ProtocolError


class RevealedSums:
    """The sums that this site helped to unmask, by the model with which they began.

    Of two sums from one model the server has the difference. So a second one is of the same sites and perhaps more.

    Args:
        known: sites of the sums, by the digest of their model.
    """

    def __init__(self, known: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
        self._known = {base: frozenset(sites) for base, sites in known.items()}

    def check(self, base: str, sites: Sequence[str]) -> None:
        """Refuse to unmask a sum that lacks a site of an earlier one from the same model.

        Raises:
            ProtocolError: names the sites.
        """
        lacking = sorted(self._known.get(base, frozenset()) - set(sites))
        if lacking:
            raise ProtocolError(
                "same model",
                f"a sum from this very model was unmasked before, and this one lacks {', '.join(lacking)}: their "
                "difference would be their update",
            )

    def note(self, base: str, sites: Iterable[str]) -> None:
        """Note a sum that is unmasked."""
        self._known[base] = self._known.get(base, frozenset()) | set(sites)

    def state(self) -> dict[str, list[str]]:
        """Return what ``known`` takes."""
        return {base: sorted(sites) for base, sites in self._known.items()}
