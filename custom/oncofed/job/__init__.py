"""A job's specification, its FLARE folder, and its run."""
