"""Encryption of an update as FLARE's homomorphic encryption does it, in its own environment.

Usage: python encrypt.py FLOATS REPEATS; prints the seconds of each repeat, and the bytes, as JSON.
"""

import json
import random
import sys
import time

import tenseal

# FLARE's defaults (lighter/impl/he.py).
POLYNOMIAL, MODULI, SCALE_BITS = 8192, [60, 40, 40], 40

if __name__ == "__main__":
    floats, repeats = map(int, sys.argv[1:])
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, POLYNOMIAL, coeff_mod_bit_sizes=MODULI)
    context.global_scale = 2**SCALE_BITS
    values = [random.gauss(0, 1e-3) for _ in range(floats)]
    seconds, size = [], 0
    for _ in range(repeats + 1):
        begun = time.process_time()
        size = len(tenseal.ckks_vector(context, values).serialize())
        seconds.append(time.process_time() - begun)
    print(json.dumps({"seconds": seconds[1:], "bytes": size}))
