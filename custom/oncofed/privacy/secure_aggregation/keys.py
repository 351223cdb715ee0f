"""Keys and sealed shares: X25519, HKDF, ChaCha20-Poly1305.

X25519 is RFC 7748, HKDF-SHA256 RFC 5869 (without salt: the shared secret is uniform enough as its input), the sealed
box RFC 8439. Every derived key has a label of its own: a key of a channel is none of a mask.
"""

from __future__ import annotations

import hashlib
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.messages import PROTOCOL

_KEY_BYTES = 32
_NONCE_BYTES = 12


def new_secret() -> bytes:
    """Return 32 bytes from the system's entropy.

    They are the seed of a site's own mask, or a private key.
    """
    return secrets.token_bytes(_KEY_BYTES)


def public_key(private: bytes) -> bytes:
    """Return the public key of a private one (X25519, 32 bytes)."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def channel_key(private: bytes, public: bytes, job: str, sites: tuple[str, str]) -> bytes:
    """Return the key of the channel between two sites.

    Args:
        private: of one site.
        public: of the other.
        job: its identifier.
        sites: both names, in any order.
    """
    return _derive(_exchange(private, public), "channel", job, *sorted(sites))


def pair_key(private: bytes, public: bytes, job: str, round: int, sites: tuple[str, str]) -> bytes:  # noqa: A002
    """Return the key of the mask that two sites share in a round.

    The keys of an attempt are new, so that the round's number is enough.
    """
    return _derive(_exchange(private, public), "pair", job, round, *sorted(sites))


def own_key(seed: bytes, job: str, round: int, site: str) -> bytes:  # noqa: A002
    """Return the key of a site's own mask."""
    return _derive(seed, "own", job, round, site)


def commitment(seed: bytes, job: str, round: int, site: str) -> bytes:  # noqa: A002
    """Return what proves a seed once it is joined from shares.

    The seed has 256 bits of entropy and the label is of no mask: it says nothing about the mask before. The paper has
    none for seeds; without it a wrong share of a seed would only show as a sum that is nonsense.
    """
    return _derive(seed, "commitment", job, round, site)


def seal(key: bytes, shares: bytes, *context: str | int) -> bytes:
    """Seal shares for another site.

    The nonce is derived from the context, which must never come again under the same key: a site shares once an
    attempt, attempts count up, and a site that was started again has a new channel.

    Args:
        key: of the channel.
        shares: to seal.
        context: job, round, attempt, sender and receiver; authenticated.
    """
    data = _context(*context)
    return ChaCha20Poly1305(key).encrypt(_nonce(data), shares, data)


def unseal(key: bytes, sealed: bytes, *context: str | int) -> bytes:
    """Open what ``seal`` made.

    Raises:
        ProtocolError: it was changed, or is of another context.
    """
    data = _context(*context)
    try:
        return ChaCha20Poly1305(key).decrypt(_nonce(data), sealed, data)
    except InvalidTag:
        raise ProtocolError(
            "shares", f"the shares from {context[-2]} to {context[-1]} were changed, or are of another attempt"
        ) from None


def _exchange(private: bytes, public: bytes) -> bytes:
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of low order: the secret would be zero, whatever the private key
        raise ProtocolError("key", "a public key is of low order, expected one that X25519 makes") from None


def _derive(secret: bytes, label: str, *context: str | int) -> bytes:
    info = f"oncofed secagg {PROTOCOL} {label}|".encode() + _context(*context)
    return HKDF(hashes.SHA256(), _KEY_BYTES, None, info).derive(secret)


def _context(*parts: str | int) -> bytes:
    """Join names and numbers; no name holds the sign between them."""
    return "|".join(map(str, parts)).encode()


def _nonce(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_NONCE_BYTES]
