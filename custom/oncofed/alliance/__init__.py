"""An alliance: participants, startup kits and, on one machine, their processes."""
