"""Alliances: participants, startup kits and local processes."""

# It sees to FLARE's loggers, before anything here imports FLARE.
import oncofed.flare  # noqa: F401
