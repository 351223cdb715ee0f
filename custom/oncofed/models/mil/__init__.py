"""Multiple-instance learning on slides: heads over a bag of tiles.

A slide is a bag of tiles' features, and only the slide has a label. Each head gives (batch, out) of bags (batch, tile,
feature) and a mask (batch, tile) of real tiles. A head may add a loss to the task's: see ``own_loss``.
"""

from __future__ import annotations

from oncofed.models.mil.base import BagHead
from oncofed.models.mil.clam import ClamSB
from oncofed.models.mil.dsmil import DSMIL
from oncofed.models.mil.gated import AttentionMIL
from oncofed.models.mil.pooling import MaxPooling, MeanPooling
from oncofed.models.mil.transmil import TransMIL

__all__ = ["DSMIL", "AttentionMIL", "BagHead", "ClamSB", "MaxPooling", "MeanPooling", "TransMIL"]
