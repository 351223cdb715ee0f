"""Content that a password opens: age files, with scrypt (https://age-encryption.org/v1)."""

from __future__ import annotations

import time

import pyrage

from oncofed.errors import AllianceError

# age refuses a password whose check would take this machine too long. It guesses that from a moment's speed, and on a
# busy machine guesses wrong now and then.
_TRIES = 6
_SECONDS_BETWEEN_TRIES = 1.0
_TOO_MUCH_WORK = "Excessive work"


def lock(content: bytes, password: str) -> bytes:
    """Return content encrypted for who has a password; it takes a second or two, on purpose."""
    return bytes(pyrage.passphrase.encrypt(content, password))


def unlock(sealed: bytes, password: str, what: str) -> bytes:
    """Return what a password opens.

    Args:
        sealed: the content as ``lock`` gave it.
        password: that may open it.
        what: it is, for the error.

    Raises:
        AllianceError: the password does not open it, the content was changed, or this machine is too slow to try.
    """
    tries = 0
    while True:
        try:
            return bytes(pyrage.passphrase.decrypt(sealed, password))
        except pyrage.DecryptError as error:
            tries += 1
            if _TOO_MUCH_WORK not in str(error):
                raise AllianceError(f"this password does not open {what}, or the file was changed") from None
            if tries == _TRIES:
                raise AllianceError(
                    f"this machine is too busy to try the password of {what}: age takes one second for that where it "
                    "was made, and refuses what takes sixteen here. Try again when less runs."
                ) from None
        time.sleep(_SECONDS_BETWEEN_TRIES)
