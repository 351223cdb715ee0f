"""What the server knows of an attempt, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oncofed.privacy.secure_aggregation.checks import Session
from oncofed.privacy.secure_aggregation.messages import Roster, Survivors
from oncofed.privacy.secure_aggregation.sums import Layout


@dataclass
class ServerAttempt:
    """What the server knows of an attempt; it holds no secrets.

    Attributes:
        session: round, attempt and model.
        layout: what is summed.
        roster: who takes part.
        commitments: to the seeds of those who shared their keys (U2), by name.
        total: sum of the masked updates, words by name.
        digests: of the masked updates, by site.
        survivors: once nothing is added any more.
        signatures: of the survivors, by site.
        revealed: whether shares may have been revealed.
    """

    session: Session
    layout: Layout
    roster: Roster | None = None
    commitments: dict[str, bytes] = field(default_factory=dict)
    total: dict[str, Tensor] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    survivors: Survivors | None = None
    signatures: dict[str, bytes] = field(default_factory=dict)
    revealed: bool = False

    def to_state(self) -> dict[str, Any]:
        """Return plain values and tensors, without job and plan."""
        assert self.roster is not None
        assert self.survivors is not None
        session = self.session
        return {
            "round": session.round,
            "attempt": session.attempt,
            "base_digest": session.base_digest,
            "shapes": {name: list(shape) for name, shape in self.layout.shapes.items()},
            "factors": dict(self.layout.factors),
            "bounds": dict(self.layout.bounds),
            "roster": self.roster.to_fields(),
            "commitments": dict(self.commitments),
            "total": dict(self.total),
            "digests": dict(self.digests),
            "survivors": self.survivors.to_fields(),
            "signatures": dict(self.signatures),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], job: str, plan_digest: str) -> ServerAttempt:
        """Return the attempt that was kept.

        Args:
            state: of ``to_state``.
            job: its identifier.
            plan_digest: of what the job's sites run.
        """
        shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        return cls(
            session=Session(job, plan_digest, state["round"], state["attempt"], state["base_digest"]),
            layout=Layout(shapes, dict(state["factors"]), dict(state["bounds"])),
            roster=Roster.from_fields(state["roster"]),
            commitments=dict(state["commitments"]),
            total={name: words.clone() for name, words in state["total"].items()},
            digests=dict(state["digests"]),
            survivors=Survivors.from_fields(state["survivors"]),
            signatures=dict(state["signatures"]),
            revealed=True,  # the server may have asked for shares after it kept this
        )
