"""A run's result, report, model and bundle."""
