"""Everything that changes FLARE at run time, each with its reason."""
