"""What sites measure differently, made alike: values by ComBat, intensities by a template."""
