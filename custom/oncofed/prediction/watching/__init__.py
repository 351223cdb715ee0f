"""Predicting what arrives in a folder, or is sent to a port."""
