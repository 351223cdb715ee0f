"""Code that an engineer brings to a job: packed, signed, reviewed by each site, and run by its digest alone."""
