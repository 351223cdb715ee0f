"""Messages from strangers are checked field by field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from oncofed.privacy.secure_aggregation import (
    Confirmation,
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    KeyShares,
    MaskedInput,
    ProtocolError,
    Ready,
    Reveal,
    Roster,
    Survivors,
)
from oncofed.privacy.secure_aggregation.fields import Message
from oncofed.privacy.secure_aggregation.messages import confirmed_part, transcript

READY = Ready("site-00", 3, 1, "base", 12, 10, 0.5, bytes(32), b"signature")
MESSAGES: list[Message] = [
    KeyAdvertisement(2, "job", "plan", "site-00", bytes(32), b"signature", b"PEM"),
    READY,
    Roster(3, 1, (READY, dataclasses.replace(READY, site="site-01")), {"site-00": 0.5, "site-01": 0.5}),
    KeyShares("site-00", 3, 1, bytes(32), {"site-01": bytes(82)}),
    ForwardedShares("site-00", 3, 1, {"site-01": bytes(82)}),
    MaskedInput("site-00", 3, 1, {"w": torch.zeros(2, dtype=torch.int32)}, bytes(32)),
    Survivors(3, 1, ("site-00", "site-01")),
    Confirmation("site-00", 3, 1, b"signature"),
    Confirmations(3, 1, {"site-00": b"signature"}),
    Reveal("site-00", 3, 1, {"site-00": bytes(33)}, {}),
]
# Values of no field: of wrong types, out of range, too long.
WRONG: list[Any] = [
    None,
    True,
    -1,
    1 << 70,
    1.0,
    float("nan"),
    float("inf"),
    b"",
    "",
    "a|b",
    "a\nb",
    "x" * 5000,
    [],
    {},
]
WRONG += [{"site": 1}, {1: bytes(33)}, [1, 2], torch.zeros(2), object()]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_to_fields_and_back(message: Message) -> None:
    fields = message.to_fields()
    again = type(message).from_fields(fields)
    if not isinstance(message, MaskedInput):
        assert again == message
    assert again.to_fields().keys() == fields.keys()
    for value in fields.values():
        assert isinstance(value, str | int | float | bytes | list | dict)
    for changed in ({**fields, "more": 1}, dict(list(fields.items())[1:]), None, [fields]):
        with pytest.raises(ProtocolError, match="with the fields"):
            type(message).from_fields(changed)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_wrong_values_in_each_field(message: Message) -> None:
    """No wrong value passes, and none comes back in the refusal."""
    # A norm may be 1.0, figures are some bytes, of nobody lost there are no shares, and scores of nobody.
    allowed: Any = {Ready: [("norm", float), ("figures", bytes)], Reveal: [("keys", dict)], Roster: [("scored", list)]}
    right = allowed.get(type(message), [])
    fields = message.to_fields()
    for name in fields:
        for wrong in WRONG:
            if (name, type(wrong)) in right and (isinstance(wrong, bytes) or wrong in (1.0, {}, [])):
                continue
            with pytest.raises(ProtocolError, match=f"{type(message).__name__}.{name}: expected ") as refused:
                type(message).from_fields({**fields, name: wrong})
            assert refused.value.rule == "message"
            assert "x" * 50 not in str(refused.value)


@pytest.mark.parametrize("protocol", [1, 3])
def test_another_release_is_named(protocol: int) -> None:
    with pytest.raises(
        ProtocolError, match=f"expected protocol 2 .*found {protocol}: install the same release"
    ) as refused:
        KeyAdvertisement.from_fields({**MESSAGES[0].to_fields(), "protocol": protocol})
    assert refused.value.rule == "another release"


def test_a_message_within_a_message() -> None:
    fields = MESSAGES[2].to_fields()
    fields["readies"][1]["cases"] = 0
    with pytest.raises(ProtocolError, match=r"Roster.readies: Ready.cases: expected a whole number of 1 to"):
        Roster.from_fields(fields)


def test_transcripts_are_unambiguous() -> None:
    made = [
        transcript("a", "b", "c"),
        transcript("a", "bc"),
        transcript("ab", "c"),
        transcript("a", "b", "c", ""),
        transcript("a", "b", 1),
        transcript("a", "b", 1.0),
        transcript("a", "b", b"\x01"),
    ]
    assert len(set(made)) == len(made)
    ready = MESSAGES[1]
    assert isinstance(ready, Ready)
    assert ready.signed_part("job", "plan") != ready.signed_part("jobp", "lan")


def test_confirmations_name_roster_shares_and_survivors() -> None:
    survivors = Survivors(3, 1, ("a", "b", "c"))
    made = {
        confirmed_part("job", bytes(32), ("a", "b", "c", "d"), survivors),
        confirmed_part("job", bytes(31) + b"\1", ("a", "b", "c", "d"), survivors),
        confirmed_part("job", bytes(32), ("a", "b", "c"), survivors),
        confirmed_part("job2", bytes(32), ("a", "b", "c", "d"), survivors),
        confirmed_part("job", bytes(32), ("a", "b", "c", "d"), Survivors(3, 2, ("a", "b", "c"))),
        confirmed_part("job", bytes(32), ("a", "b", "c"), Survivors(3, 1, ("d", "a", "b", "c"))),
    }
    assert len(made) == 6
    roster = MESSAGES[2]
    assert isinstance(roster, Roster)
    heavier = dataclasses.replace(roster, weights={"site-00": 0.6, "site-01": 0.4})
    assert roster.digest("job", "plan") != heavier.digest("job", "plan")
    assert roster.digest("job", "plan") == Roster.from_fields(roster.to_fields()).digest("job", "plan")
