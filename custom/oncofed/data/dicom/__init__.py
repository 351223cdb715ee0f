"""From a heap of DICOM files to volumes, flat images and labels. Nothing outside this folder knows what a tag is."""
