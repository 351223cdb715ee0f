"""Extraction of a dataset's features: all slides, kept as HDF5.

One process a GPU works on one slide after another (``worker``), fed by a parent that computes nothing (``pool``).
"""

from oncofed.tasks.extraction.dataset import ExtractionRequest, extract_dataset

__all__ = ["ExtractionRequest", "extract_dataset"]
