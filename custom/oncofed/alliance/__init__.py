"""Alliances: participants, startup kits and local processes."""
