"""What the documents say of CUDA GPUs, checked on one within ten minutes: ``make gpu``."""
