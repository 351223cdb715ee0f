"""Prediction of files from a folder or C-STORE."""
