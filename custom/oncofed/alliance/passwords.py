"""Encryption with a password: age with scrypt (https://age-encryption.org/v1)."""

from __future__ import annotations

import time

import pyrage

from oncofed.errors import AllianceError

# age refuses a password whose check would take too long. It estimates that from a short measurement, which is sometimes
# wrong on a busy machine.
_TRIES = 6
_SECONDS_BETWEEN_TRIES = 1.0
_TOO_MUCH_WORK = "Excessive work"


def lock(content: bytes, password: str) -> bytes:
    """Encrypt with a password.

    Takes a second or two, by design.
    """
    return bytes(pyrage.passphrase.encrypt(content, password))


def unlock(sealed: bytes, password: str, what: str) -> bytes:
    """Decrypt with a password.

    Args:
        sealed: the result of ``lock``.
        password: to try.
        what: name of the content, for the error.

    Raises:
        AllianceError: the password is wrong, the content was changed, or this machine is too slow to try.
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
