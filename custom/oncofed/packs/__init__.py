"""An engineer's own code for a job.

Packed, signed, reviewed by each site, and run by its digest alone.
"""
