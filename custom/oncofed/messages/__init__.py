"""Messages between server and sites, independent of FLARE."""
