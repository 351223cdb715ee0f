"""Messages between server and sites. Nothing here knows FLARE."""
