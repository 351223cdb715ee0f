"""The server's part of a job: ``loop.RoundLoop`` and its parts.

Nothing here knows FLARE, or the name of an algorithm: ``transport.Transport`` is the connection to the sites, and
``schedules`` carries out each schedule of ``algorithms.schedule``.
"""
