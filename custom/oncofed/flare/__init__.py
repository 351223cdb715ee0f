"""oncofed inside FLARE: server, site and messages."""
