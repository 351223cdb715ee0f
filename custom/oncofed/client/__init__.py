"""A site's part of a job: its local training, in its own process or sandboxed. Nothing here knows FLARE."""
