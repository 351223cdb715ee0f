"""The server's part of a job: ``loop.RoundLoop`` and its parts.

Nothing here depends on FLARE or on a certain algorithm: ``transport.Transport`` is the connection to the sites, and
``schedules`` carries out each schedule of ``algorithms.schedule``.
"""
