"""What a hospital's systems hold: images in its archive, outcomes in its records."""
