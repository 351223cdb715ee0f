"""Stains of microscopy: estimated by slide, normalised to a template, changed at random."""
