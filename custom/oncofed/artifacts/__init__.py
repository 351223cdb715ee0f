"""Files kept with a model: provenance, profile, job, bundle."""
