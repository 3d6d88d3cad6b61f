"""Seeds, and the global random generators that dependencies and the initialisation of networks draw from."""

import hashlib
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray


def seed_globals(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the legacy generator is the one that dependencies use
    torch.manual_seed(seed)


def derive_seed(seed: int, purpose: str) -> int:
    """Return an independent seed for one purpose; with the same seed for all, their random streams would be equal."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


def environment_and_acting_seeds(seed: int) -> tuple[np.random.SeedSequence, int]:
    """Return independent seeds of the resets of environments and of acting in them."""
    environments, acting = np.random.SeedSequence(seed).spawn(2)
    return environments, int(acting.generate_state(1)[0])


def seed_from(generator: torch.Generator) -> int:
    """Return a seed derived from a generator's state, which is unchanged; its stream is unrelated to the generator's.

    Unlike a number drawn from the generator, it needs no synchronisation with a GPU.
    """
    return int.from_bytes(hashlib.blake2b(generator.get_state().numpy().tobytes(), digest_size=7).digest())


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """State of a generator for a checkpoint, with the type of its device."""
    return {"generator": generator.get_state(), "device": generator.device.type}


def restore_generator(generator: torch.Generator, state: Mapping[str, Any]) -> None:
    """Restore the result of `generator_state`; a generator on another type of device stays as it is."""
    if state["device"] == generator.device.type:  # another device draws other numbers anyway
        generator.set_state(state["generator"].cpu())


@contextmanager
def fork_globals() -> Iterator[None]:
    """Restore the global generators after a block that draws from them; those of GPUs only if CUDA is in use."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        gpus = range(torch.cuda.device_count() if _uses_cuda() else 0)  # reading them initialises CUDA
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def globals_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, numpy and torch, as plain values and tensors.

    Those of GPUs are included only if this process uses CUDA, because reading them would initialise it.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if _uses_cuda():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_globals(state: Mapping[str, Any]) -> None:
    """Restore the result of `globals_state`; generators of GPUs only if the number of GPUs is the same.

    Raises:
        ValueError: The state is not one of these generators.
    """
    version, numbers, gauss = state["python"]
    if not all(type(number) is int for number in numbers):
        raise ValueError("the state of Python's generator is not of integers")
    *words, position = numbers
    require_twister(
        "Python's generator", np.array(words, object), position, gauss is not None, 0.0 if gauss is None else gauss
    )
    kind, keys, position, has_gauss, left_over = state["numpy"]
    key = keys.cpu().numpy()
    require_twister("numpy's generator", key, position, has_gauss, left_over)
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state((kind, key.astype(np.uint32), position, has_gauss, left_over))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if _uses_cuda() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def _uses_cuda() -> bool:
    """Return True if this process has initialised CUDA; asking whether there is a GPU would begin to do so."""
    return bool(cast(Any, torch.cuda).is_initialized())  # untyped in torch


def require_twister(name: str, words: NDArray[Any], position: object, has_gauss: object, gauss: object) -> None:
    """Raise unless the numbers are a state of the Mersenne Twister: numpy accepts any, and may read out of bounds.

    Args:
        name: Name of the generator, for the message.
        words: 624 integers of 32 bits.
        position: Index of the next word, at most 624.
        has_gauss: 1 if a normally distributed number is left over, otherwise 0.
        gauss: The number that is left over.
    """
    in_range = words.shape == (624,) and words.dtype.kind in "iuO" and words.min() >= 0 and words.max() < 2**32
    if not in_range:
        raise ValueError(f"the state of {name} has other words than 624 integers of 32 bits")
    if type(position) is not int or not 0 <= position <= 624:
        raise ValueError(f"the state of {name} has position {position!r}, expected an integer in [0, 624]")
    if type(has_gauss) not in (int, bool) or has_gauss not in (0, 1) or type(gauss) is not float:
        raise ValueError(
            f"the state of {name} has has_gauss {has_gauss!r} and gauss {gauss!r}, expected 0 or 1, a float"
        )
