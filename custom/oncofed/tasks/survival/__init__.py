"""Statistics of survival: losses, figures over patients, and what sites tell one another."""
