"""oncofed inside FLARE: server, site and messages."""

from oncofed.flare.patches.loggers import see_callers_only

see_callers_only()
