"""Checks of how far to trust a prediction."""
