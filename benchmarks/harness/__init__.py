"""Benchmark harness: samples, machine limits, comparisons."""
