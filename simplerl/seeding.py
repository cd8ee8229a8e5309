"""Randomness without state: the seed of every random choice is a hash of its purpose.

No generator state is saved, and a resumed run draws the numbers that an uninterrupted run would draw.
"""

from __future__ import annotations

import hashlib
import random


def seed_for(run_seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed from the run's seed and a purpose such as ("sample", step, problem id, index)."""
    # The separator keeps ("ab", "c") apart from ("a", "bc"); the type name keeps 1 apart from "1".
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (run_seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng_for(run_seed: int, *purpose: str | int) -> random.Random:
    """Make a generator, seeded by `seed_for`."""
    return random.Random(seed_for(run_seed, *purpose))


def permutation(size: int, run_seed: int, *purpose: str | int) -> list[int]:
    """Shuffle the numbers 0 .. size-1. The order depends on the seed and the purpose alone."""
    order = list(range(size))
    rng_for(run_seed, *purpose).shuffle(order)
    return order
