"""Slides that turn out to be damaged while they are scored."""

from __future__ import annotations

from oncofed.data.case import Case
from oncofed.errors import DataError, UnreadableError


class DamagedSlides(dict[str, str]):
    """Name -> what is wrong, of slides that are set aside while a network is scored.

    Registering reads a slide's overview; where a network looks, a part may be damaged all the same.

    Args:
        cases: that the site has.
        share: of them that may be set aside.
    """

    def __init__(self, cases: int, share: float) -> None:
        super().__init__()
        self._cases, self._share = cases, share

    def set_aside(self, case: Case, error: DataError) -> None:
        """Note a slide.

        Raises:
            UnreadableError: its file is gone.
            DataError: more than the share are damaged.
        """
        if not case.image.exists():
            raise UnreadableError(f"{case.name}: its file is gone. See that its folder is reachable") from None
        self[case.name] = str(error)
        if len(self) <= self._share * self._cases:
            return
        found = "\n".join(f"  {name}: {why}" for name, why in self.items())
        raise DataError(
            f"{len(self)} of {self._cases} cases turned out to be damaged while they were scored, more than the share "
            f"of {self._share:g} that may be set aside (data.max_bad_share):\n{found}\nRepair them, and register again"
        ) from None
