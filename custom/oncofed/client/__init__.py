"""A site's local training, in the job's process or sandboxed. Knows nothing of FLARE."""
