"""Statistics of survival: losses, figures, sums over sites."""
