"""Benchmarks that hold up: samples, limits of the machine, comparisons. The suites are in ``benchmarks/``."""
