"""Predictions as DICOM objects, marked as research."""
