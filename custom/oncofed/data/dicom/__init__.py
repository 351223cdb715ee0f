"""DICOM: from any files to volumes, flat images and labels.

Nothing outside this folder knows a tag.
"""
