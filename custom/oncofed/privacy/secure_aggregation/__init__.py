"""Secure aggregation: the server learns the sum of updates alone.

The protocol is that of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS
2017), for an active server: pairwise masks, a second mask of each site's own, Shamir shares of both secrets, signed
keys and a consistency check. Two things differ, for 3 to 255 hospitals that train for minutes or hours. Who takes part
is fixed *after* training, so that a site lost in training costs nothing. And sites also sign the roster and the
model with which they began, so that a server cannot tell different sites different things.

Everything here is a state machine: messages in, messages out. There is no network, file, clock or thread of control.
"""

from oncofed.privacy.secure_aggregation.aggregator import Aggregator
from oncofed.privacy.secure_aggregation.failures import AggregationFailed, ProtocolError
from oncofed.privacy.secure_aggregation.messages import (
    PROTOCOL,
    Confirmation,
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    KeyShares,
    MaskedInput,
    Ready,
    Reveal,
    Roster,
    Survivors,
)
from oncofed.privacy.secure_aggregation.participant import Participant
from oncofed.privacy.secure_aggregation.rules import Rules, Verify, VerifyKey, Weigh, by_cases, threshold
from oncofed.privacy.secure_aggregation.sums import Layout, Sum

__all__ = [
    "PROTOCOL",
    "AggregationFailed",
    "Aggregator",
    "Confirmation",
    "Confirmations",
    "ForwardedShares",
    "KeyAdvertisement",
    "KeyShares",
    "Layout",
    "MaskedInput",
    "Participant",
    "ProtocolError",
    "Ready",
    "Reveal",
    "Roster",
    "Rules",
    "Sum",
    "Survivors",
    "Verify",
    "VerifyKey",
    "Weigh",
    "by_cases",
    "threshold",
]
