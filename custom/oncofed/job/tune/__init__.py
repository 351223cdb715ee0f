"""A search for a job's settings, scored on validation patients alone."""
