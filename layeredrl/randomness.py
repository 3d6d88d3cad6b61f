"""The global random generators, which dependencies and the initialisation of networks draw from."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_globals(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the legacy generator is the one that dependencies use
    torch.manual_seed(seed)


def derive_seed(seed: int, purpose: str) -> int:
    """A seed for one of several streams of randomness that one seed drives; without it they would be alike."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


@contextmanager
def fork_globals() -> Iterator[None]:
    """Let a block draw from the global generators without a trace: afterwards they are as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
