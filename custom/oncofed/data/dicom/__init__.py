"""DICOM: from any files to volumes, flat images and labels.

DICOM tags are used in this folder alone.
"""
