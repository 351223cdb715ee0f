"""Keys, streams and shares: published vectors and those of the protocol."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
from collections import Counter

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.privacy.secure_aggregation import ProtocolError, keys, shamir
from oncofed.privacy.secure_aggregation.masks import Mask, add_mask, add_masks, pair_sign
from oncofed.privacy.secure_aggregation.ring import dequantise, quantise, scale_of, unsigned

PRIVATE = {name: hashlib.sha256(b"oncofed test " + name.encode()).digest() for name in "abc"}
SEED = {name: hashlib.sha256(b"oncofed own " + name.encode()).digest() for name in "abc"}
PAIR = "eb9689ac3c3787060ca33033ad4eeb49a4b311be396176350ffdbf35f5765d76"


# --- published vectors


def test_x25519_of_rfc_7748() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert keys.public_key(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert keys.pair_key(alice, bob, "job", 1, ("a", "b")) == _hkdf(shared, b"oncofed secagg 2 pair|job|1|a|b")


def test_a_public_key_of_low_order_is_refused() -> None:
    for point in (bytes(32), bytes([1]) + bytes(31)):
        with pytest.raises(ProtocolError, match="low order") as refused:
            keys.pair_key(PRIVATE["a"], point, "job", 1, ("a", "b"))
        assert refused.value.rule == "key"


def test_hkdf_of_rfc_5869() -> None:
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert HKDF(hashes.SHA256(), 42, None, b"").derive(b"\x0b" * 22).hex() == expected
    assert _hkdf(b"\x0b" * 22, b"").hex() == expected[:64]


def test_chacha20_poly1305_of_rfc_8439() -> None:
    box = ChaCha20Poly1305(bytes(range(0x80, 0xA0)))
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would "
        b"be it."
    )
    nonce, data = bytes.fromhex("070000004041424344454647"), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = box.encrypt(nonce, text, data)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    assert keys.seal(bytes(range(0x80, 0xA0)), text, "job", 7, 2, "a", "b") == box.encrypt(
        hashlib.sha256(b"job|7|2|a|b").digest()[:12], text, b"job|7|2|a|b"
    )


def test_a_mask_is_aes_256_of_counters() -> None:
    """NIST SP 800-38A: F.1.5 for the cipher, 6.5 for the mode."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = Cipher(algorithms.AES(key), modes.CTR(bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))).encryptor()
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    assert counter.update(plain).hex() == "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    assert block.update(plain[:16]).hex() == "f3eed1bdb5d2a03c064b5a7e3db181f8"
    words = np.zeros(100_000, dtype=np.uint32)
    add_mask(words, key)
    stream = b"".join(block.update(number.to_bytes(16, "big")) for number in range(25_000))
    assert (words == np.frombuffer(stream, dtype="<u4")).all()


def test_a_mask_goes_on_where_it_ended() -> None:
    whole = np.zeros(70_000, dtype=np.uint32)
    add_mask(whole, SEED["a"])
    mask, parts = Mask(SEED["a"]), [np.zeros(size, dtype=np.uint32) for size in (1, 5, 0, 40_000, 29_994)]
    for part in parts:
        add_masks(part, [mask])
    assert (np.concatenate(parts) == whole).all()
    halves = np.zeros(140_000, dtype=np.uint16)
    add_mask(halves, SEED["a"])
    assert (halves.view("<u4") == whole).all()
    add_mask(whole, SEED["a"], -1)
    assert not whole.any()


# --- vectors of the protocol


def test_vectors_of_the_protocol() -> None:
    public = {name: keys.public_key(private) for name, private in PRIVATE.items()}
    assert [int.from_bytes(key[:4], "big") for key in public.values()] == [0x2FDD09F5, 0x76042039, 0xBAED7902]
    assert [int.from_bytes(key[-2:], "big") for key in public.values()] == [0x4957, 0x9106, 0xE357]
    pair = keys.pair_key(PRIVATE["a"], public["b"], "job-1", 7, ("a", "b"))
    assert pair == keys.pair_key(PRIVATE["b"], public["a"], "job-1", 7, ("b", "a"))
    assert pair.hex() == PAIR
    words = np.zeros(4, dtype=np.uint32)
    add_mask(words, pair)
    assert words.tolist() == [1769890971, 3636209693, 2263290924, 155605786]

    values = {"a": [0.5, -0.25, 1e-3, 0.0], "b": [-0.5, 0.125, 2e-3, 1.0], "c": [0.25, 0.25, -3e-3, -1.0]}
    weights, scale = {"a": 0.5, "b": 0.25, "c": 0.25}, scale_of("x", {})
    masked = {}
    for name in "abc":
        words = unsigned(quantise(torch.tensor(values[name]), weights[name], scale))
        masks = [Mask(keys.own_key(SEED[name], "job-1", 7, name))]
        for other in set("abc") - {name}:
            key = keys.pair_key(PRIVATE[name], public[other], "job-1", 7, (name, other))
            masks.append(Mask(key, pair_sign(name, other)))
        add_masks(words, masks)
        masked[name] = words
    assert masked["a"].tolist() == [590191125, 2391554117, 1355550280, 1795214096]
    assert masked["b"].tolist() == [2806862729, 1679593207, 1198858482, 3936349361]
    assert masked["c"].tolist() == [376189610, 310983912, 2383881405, 410471632]

    total = masked["a"] + masked["b"] + masked["c"]
    add_masks(total, [Mask(keys.own_key(SEED[name], "job-1", 7, name), -1) for name in "abc"])
    assert total.view(np.int32).tolist() == [3145728, -524288, 4195, 0]
    sums = dequantise(torch.from_numpy(total.view(np.int32)), scale)
    assert sums.tolist() == pytest.approx([0.1875, -0.03125, 0.00025004148, 0.0], rel=1e-7)


def test_vector_of_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda _: int.from_bytes(SEED["b"], "big"))
    shares = shamir.split(SEED["a"], 2, 3)
    assert shares[1].hex() == "007d1846ee110696820e8232a1acaa503d21a3a72b18f03b0a1a6e187156f18922"
    assert shamir.join({1: shares[1], 3: shares[3]}) == SEED["a"]


def test_labels_keep_keys_apart() -> None:
    """Another job, round, site or use gives another key."""
    public = keys.public_key(PRIVATE["b"])
    made = [
        keys.pair_key(PRIVATE["a"], public, "job", 1, ("a", "b")),
        keys.pair_key(PRIVATE["a"], public, "job", 2, ("a", "b")),
        keys.pair_key(PRIVATE["a"], public, "job2", 1, ("a", "b")),
        keys.pair_key(PRIVATE["a"], public, "job", 1, ("a", "c")),
        keys.channel_key(PRIVATE["a"], public, "job", ("a", "b")),
        keys.own_key(PRIVATE["a"], "job", 1, "a"),
        keys.commitment(PRIVATE["a"], "job", 1, "a"),
    ]
    assert len(set(made)) == len(made)


# --- Shamir


@pytest.mark.parametrize("sites", range(1, 8))
def test_any_t_shares_join_and_fewer_do_not(sites: int) -> None:
    needed = 2 * sites // 3 + 1
    shares = shamir.split(SEED["a"], needed, sites)
    for points in itertools.combinations(shares, needed):
        assert shamir.join({point: shares[point] for point in points}) == SEED["a"]
    for points in itertools.combinations(shares, needed - 1):
        if points:
            assert _joins_to({point: shares[point] for point in points}) != SEED["a"]


@settings(max_examples=25)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 60))
def test_every_secret_of_32_bytes_comes_back(secret: bytes, sites: int) -> None:
    needed = 2 * sites // 3 + 1
    shares = shamir.split(secret, needed, sites)
    assert len(shares) == sites
    assert {len(share) for share in shares.values()} == {33}
    assert shamir.join(dict(list(shares.items())[-needed:])) == secret


def test_the_largest_secret_and_values_out_of_the_field() -> None:
    largest = b"\xff" * 32
    assert shamir.join(shamir.split(largest, 3, 4)) == largest
    with pytest.raises(ValueError, match="not of this field"):
        shamir.join({1: shamir.PRIME.to_bytes(33, "big")})
    with pytest.raises(ValueError, match="not of this field"):
        shamir.join({0: bytes(33)})
    with pytest.raises(ValueError, match="not of one secret"):
        shamir.join({1: (2**256).to_bytes(33, "big")})
    for secret, needed, count in ((b"short", 2, 3), (largest, 0, 3), (largest, 4, 3)):
        with pytest.raises(ValueError, match="expected 32 bytes"):
            shamir.split(secret, needed, count)


def test_fewer_shares_say_nothing() -> None:
    """In a small field, two shares of three: every pair is as likely for one secret as for another."""
    prime = 7

    def views(secret: int) -> Counter[tuple[int, int]]:
        every = itertools.product(range(prime), repeat=2)
        return Counter(
            tuple(shamir.polynomial([secret, first, second], x, prime) for x in (1, 2)) for first, second in every
        )

    assert views(0) == views(5)
    prime = 257
    rest = list(range(prime))
    assert sorted(shamir.polynomial([3, c], 1, prime) for c in rest) == sorted(
        shamir.polynomial([200, c], 1, prime) for c in rest
    )
    points = {x: shamir.polynomial([3, 5, 9], x, prime) for x in (1, 4, 250)}
    assert shamir.at_zero(points, prime) == 3


def test_the_field_is_of_a_prime() -> None:
    """The test of Miller and Rabin with 40 random bases."""
    odd, halvings = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, halvings = odd // 2, halvings + 1
    for _ in range(40):
        power = pow(2 + secrets.randbelow(shamir.PRIME - 3), odd, shamir.PRIME)
        powers = [pow(power, 1 << times, shamir.PRIME) for times in range(halvings)]
        assert power == 1 or shamir.PRIME - 1 in powers


# --- sealed shares


def test_a_sealed_share_opens_only_in_its_context() -> None:
    sealed = keys.seal(SEED["a"], b"shares", "job", 1, 1, "a", "b")
    assert keys.unseal(SEED["a"], sealed, "job", 1, 1, "a", "b") == b"shares"
    for context in (("job", 2, 1, "a", "b"), ("job", 1, 2, "a", "b"), ("job", 1, 1, "b", "a"), ("j", 1, 1, "a", "b")):
        with pytest.raises(ProtocolError, match="changed, or are of another attempt"):
            keys.unseal(SEED["a"], sealed, *context)
    for place in range(len(sealed)):
        broken = bytes(byte ^ (place == at) for at, byte in enumerate(sealed))
        with pytest.raises(ProtocolError, match="changed"):
            keys.unseal(SEED["a"], broken, "job", 1, 1, "a", "b")


def _hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes without salt, a second time."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _joins_to(shares: dict[int, bytes]) -> bytes | None:
    try:
        return shamir.join(shares)
    except ValueError:
        return None
