"""Files from the web: resumed where they were cut, checked by their MD5."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oncofed.errors import DataError

# Called with (step, bytes or images done, number in all).
Progress = Callable[[str, int, int], None]

_BLOCK = 1 << 20
_SECONDS_OF_SILENCE = 60


@dataclass(frozen=True)
class Download:
    """A file that somebody publishes.

    Attributes:
        url: its address.
        md5: of its content, hexadecimal.
        size: in bytes; None: the server says it when it sends.
    """

    url: str
    md5: str
    size: int | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2].partition("?")[0]


def fetch(download: Download, folder: Path, progress: Progress) -> Path:
    """Return a downloaded file, checked; a part is resumed.

    Args:
        download: the file.
        folder: for it; what is there already is checked, not fetched.
        progress: called as it arrives.

    Raises:
        DataError: there is no network, or the file is not what was published; then it is removed.
    """
    file = folder / download.name
    if file.is_file():
        _require_checksum(download, file, progress)
        return file
    part = file.with_name(f"{file.name}.part")
    advice = (
        "What has arrived is kept: run the command again to go on. Without a network, put the file there yourself: "
        f"{file}"
    )
    with _told(download.url, advice):
        _download(download, part, progress)
    _require_checksum(download, part, progress)
    return part.replace(file)


def read_small(url: str, most: int, advice: str) -> bytes:
    """Return what an address answers.

    Args:
        url: the address.
        most: bytes that may be answered.
        advice: what to do if it cannot be reached.

    Raises:
        DataError: it cannot be reached, or answers more.
    """
    with _told(url, advice), _opened(urllib.request.Request(url)) as answer:  # noqa: S310 - of a table in this package
        content: bytes = answer.read(most + 1)
    if len(content) > most:
        raise DataError(f"{url}: the answer is longer than {most} bytes, expected a short one.")
    return content


@contextlib.contextmanager
def _told(url: str, advice: str) -> Iterator[None]:
    """Say why a file cannot be fetched, and what to do."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url} cannot be fetched ({_why_not(error)}). {advice}") from None


def _why_not(error: Exception) -> str:
    """Return why a download failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered with status {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "nothing came in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return "the connection failed or ended early"


@contextlib.contextmanager
def _opened(request: urllib.request.Request) -> Iterator[http.client.HTTPResponse]:
    """Yield a server's answer, which came by TLS where TLS was asked for."""
    with urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE) as answer:  # noqa: S310 - of a table in this package
        if request.full_url.startswith("https:") and not answer.geturl().startswith("https:"):
            raise ConnectionError(errno.EPROTO, f"it leads to {answer.geturl()}, which is not encrypted")
        yield answer


def _download(download: Download, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if download.size is not None and have == download.size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(download.url, headers=headers)  # noqa: S310 - of a table in this package
    try:
        with _opened(request) as answer:
            if have and answer.status != 206:  # a server that cannot resume sends the whole file
                have = 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if have else "wb") as out:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    have += len(block)
                    progress(f"fetching {download.name}", have, total)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # range not satisfiable: the file is complete
            return
        raise
    if have < total:
        raise ConnectionError(errno.ECONNRESET, f"the connection ended after {have} of {total} bytes")


def _require_checksum(download: Download, file: Path, progress: Progress) -> None:
    progress(f"checking {download.name}", 0, 0)
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if found != download.md5:
        size = file.stat().st_size
        file.unlink()
        raise DataError(
            f"{download.name}: its MD5 is {found} ({size} bytes), expected {download.md5}. It was removed; fetch it "
            "again."
        )
