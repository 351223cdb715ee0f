"""Applies a trained model: predict, evaluate, export.

Nothing here depends on federation.
"""
