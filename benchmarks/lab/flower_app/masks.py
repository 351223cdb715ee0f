"""Masks of Flower's SecAgg+, by its own functions, in its own environment.

Usage: python masks.py FLOATS SITES REPEATS; prints the seconds of each repeat as JSON.
"""

import json
import secrets
import sys
import time

import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

# Its defaults, as of its workflow and mod.
CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE = 8.0, 1 << 22, 1 << 32


def mask(update: list[np.ndarray], seeds: list[bytes]) -> list[np.ndarray]:
    """Quantise an update, and add its own mask and one for each other site."""
    words = quantize(update, CLIPPING_RANGE, TARGET_RANGE)
    shapes = [value.shape for value in words]
    for number, seed in enumerate(seeds):
        combine = parameters_addition if number % 2 == 0 else parameters_subtraction
        words = combine(words, pseudo_rand_gen(seed, MOD_RANGE, shapes))
    return parameters_mod(words, MOD_RANGE)


if __name__ == "__main__":
    floats, sites, repeats = map(int, sys.argv[1:])
    made = [np.random.default_rng(0).standard_normal(floats, dtype=np.float32) * np.float32(1e-3)]
    keys = [secrets.token_bytes(32) for _ in range(sites)]
    seconds = []
    for _ in range(repeats + 1):
        begun = time.process_time()
        mask(made, keys)
        seconds.append(time.process_time() - begun)
    print(json.dumps(seconds[1:]))
