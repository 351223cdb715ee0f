"""Predictions as DICOM objects that lie on the series that they were made of: for research, and each says so."""
