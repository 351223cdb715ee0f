"""When not to trust a prediction."""
