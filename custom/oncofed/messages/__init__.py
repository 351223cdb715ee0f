"""What server and sites say to each other. Nothing here knows FLARE."""
