"""A job as data: its specification, its FLARE folder, and how it runs."""
