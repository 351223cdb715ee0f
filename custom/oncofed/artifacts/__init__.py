"""Files kept with a trained model: provenance, training profile, job, bundle."""
