"""DICOM application entities: addresses and AE titles."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from oncofed.errors import SpecError
from oncofed.loopback import IPV4

# Called with the kind of an event and one line of text for people.
Notify = Callable[[str, str], None]
# PS3.5, table 6.2-1: no backslash, no control characters, not only spaces; surrounding spaces are ignored.
_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
_ADDRESS = re.compile(r"(?:(\[[0-9A-Fa-f:.%a-z]+\]|[^\[\]:@\s]+):)?(\d{1,5})")
_LARGEST_PORT = 65535
_MINUTE = 60.0


@dataclass(frozen=True)
class Address:
    """Host name or IP address, and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class ApplicationEntity:
    """A remote application entity."""

    title: str
    address: Address

    def __str__(self) -> str:
        return f"{self.title}@{self.address}"


class RateLimitedNotify:
    """Limits the number of event lines per minute.

    Remote senders cause these events and must not be able to fill the disk with log lines.

    Args:
        notify: receives the lines that pass.
        most: lines per minute.
        clock: monotonic clock in seconds.
    """

    def __init__(self, notify: Notify, most: int = 30, clock: Callable[[], float] = time.monotonic) -> None:
        self._notify, self._clock = notify, clock
        self._times: deque[float] = deque(maxlen=most)
        self._left_out = 0

    def __call__(self, kind: str, text: str) -> None:
        """Report the event, or count it as left out.

        The next line that is reported includes the count.
        """
        now = self._clock()
        if len(self._times) == self._times.maxlen and now - self._times[0] < _MINUTE:
            self._left_out += 1
            return
        self._times.append(now)
        more, self._left_out = (f" ({self._left_out} lines before were left out)" if self._left_out else ""), 0
        self._notify(kind, f"{text}{more}")


def parse_ae_title(text: str, option: str) -> str:
    """Return a valid AE title.

    Raises:
        SpecError: it is invalid.
    """
    title = text.strip(" ")
    if not _TITLE.fullmatch(title):
        raise SpecError(f"{option}: {text!r} is no AE title: expected 1 to 16 letters, digits or signs, no backslash")
    return title


def parse_ae_titles(text: str, option: str) -> list[str]:
    """Return AE titles from a comma-separated list.

    Raises:
        SpecError: one is invalid.
    """
    return [parse_ae_title(title, option) for title in text.split(",")]


def parse_address(text: str, option: str) -> Address:
    """Parse ``[HOST:]PORT``; the host defaults to loopback.

    Raises:
        SpecError: the text has another form.
    """
    found = _ADDRESS.fullmatch(text)
    if not found or not 0 < int(found[2]) <= _LARGEST_PORT:
        raise SpecError(f"{option}: {text!r} is no address: expected PORT or HOST:PORT, such as 11112")
    return Address((found[1] or IPV4).strip("[]"), int(found[2]))


def parse_application_entity(text: str, option: str) -> ApplicationEntity:
    """Parse ``AE@HOST:PORT``.

    Raises:
        SpecError: the text has another form.
    """
    title, _, address = text.rpartition("@")
    if not title or not _ADDRESS.fullmatch(address) or address.isdigit():
        raise SpecError(f"{option}: {text!r} names no receiver: expected AE@HOST:PORT, such as PACS@127.0.0.1:104")
    return ApplicationEntity(parse_ae_title(title, option), parse_address(address, option))
