"""Whole slides as networks see them: window after window, strip after strip."""
