"""Random streams that are a pure function of a key, so that none depends on how many others were used before it."""

import numpy as np
import torch

from diffpolicy_rl.errors import UserError


def stream(*key: int) -> torch.Generator:
    """A CPU generator seeded by non-negative integers, as in (seed, env row, episode)."""
    if min(key) < 0:
        raise UserError(f"seed={min(key)} must not be negative")
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)
