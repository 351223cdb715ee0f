"""oncofed: federated training for medical imaging on NVIDIA FLARE and MONAI."""

__version__ = "0.1.0"
