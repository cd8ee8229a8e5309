"""Randomness without state: every random choice takes its seed from a hash of what it is for.

No generator state is ever saved, so a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import random


def seed_for(run_seed: int, *purpose: str | int) -> int:
    """A 63-bit seed, a pure function of the run's seed and a purpose such as ("sample", step, problem id, index)."""
    # The separator keeps ("ab", "c") apart from ("a", "bc"); the type name keeps 1 apart from "1".
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (run_seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng_for(run_seed: int, *purpose: str | int) -> random.Random:
    """A fresh generator seeded by `seed_for`."""
    return random.Random(seed_for(run_seed, *purpose))


def permutation(size: int, run_seed: int, *purpose: str | int) -> list[int]:
    """The numbers 0 .. size-1 in an order that depends on the purpose alone."""
    order = list(range(size))
    rng_for(run_seed, *purpose).shuffle(order)
    return order
