"""Federated training for medical imaging on FLARE and MONAI."""

__version__ = "0.1.0"
