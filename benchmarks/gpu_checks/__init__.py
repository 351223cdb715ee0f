"""Checks the documents' claims about CUDA GPUs: ``make gpu``."""
