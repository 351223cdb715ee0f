"""An alliance: who takes part, their startup kits, and, on one machine, their running processes."""
