"""Where the transitions of a level are kept."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tianshou.data import Batch, VectorReplayBuffer


class Replay:
    """Transitions of vectorised environments in tianshou's `VectorReplayBuffer`, one ring for each environment.

    Args:
        size: Transitions kept, all environments together; the oldest of an environment make room for its newest.
        n_envs: Number of environments.
        seed: Of the sampling.
    """

    def __init__(self, size: int, n_envs: int, *, seed: int = 0) -> None:
        if size < n_envs:
            raise ValueError(f"size is {size}, expected at least one transition for each of {n_envs} environments")
        # tianshou seeds every ring alike unless told otherwise, which correlates what they sample.
        self.buffer = VectorReplayBuffer(size, n_envs, random_seed=seed)

    def __len__(self) -> int:
        return len(self.buffer)

    def add(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        """Store one transition for each of some environments.

        Args:
            transitions: Keys `obs`, `act`, `rew`, `terminated`, `truncated`, `obs_next`, and `info` for all else, the
                environment first. Floats are stored as float32, rewards as float64.
            env_ids: Which environments they come from, in ascending order.

        Raises:
            ValueError: A number is not finite.
        """
        for key in ("obs", "act", "rew", "obs_next"):
            require_finite(key, transitions[key], env_ids)
        self.buffer.add(transitions, buffer_ids=env_ids)

    def all(self) -> Batch:
        """All transitions, environment by environment, each in the order of time."""
        return cast(Batch, self.buffer[self.buffer.sample_indices(0)])


def require_finite(name: str, values: NDArray[Any], env_ids: NDArray[np.int64]) -> None:
    """Raise, naming the environment, if a row of `values` (n, ...) is not finite."""
    # The sum is not finite if a term is not: one pass for the usual case.
    if np.isfinite(values.sum()):
        return
    finite = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} of environment {env_ids[row]} is {values[row].tolist()}, expected finite numbers")
