"""What is kept with a trained model: provenance, training profile, its job, a bundle's further files."""
