"""A table's columns as typed targets.

A kind of target is a class here: which columns it reads, and how their cells become values. What cannot be read beyond
doubt is refused, by line and column.
"""

from __future__ import annotations

from oncofed.data.target_columns.section import TableTargets, parse_targets

__all__ = ["TableTargets", "parse_targets"]
