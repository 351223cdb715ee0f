"""A site's local training, in-process or sandboxed.

Nothing here depends on FLARE.
"""
