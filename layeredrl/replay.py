"""Where the transitions of a level are kept."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tianshou.data import Batch, ReplayBuffer, ReplayBufferManager, VectorReplayBuffer


class _Rings(VectorReplayBuffer):
    """A `VectorReplayBuffer` whose rings have a seed each: tianshou's share one, which correlates what they sample."""

    def __init__(self, size: int, n_envs: int, seed: int) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(n_envs)
        rings = [ReplayBuffer(size // n_envs, random_seed=int(s)) for s in seeds]
        ReplayBufferManager.__init__(self, rings)

    def _compile(self) -> None:
        """Do not compile at once what may never be called: it takes seconds, and happens by itself when it is."""


class Replay:
    """Transitions of vectorised environments in tianshou's `VectorReplayBuffer`, one ring for each environment.

    Args:
        size: Transitions kept at the most, all environments together; an environment's oldest make room for its newest.
        n_envs: Number of environments.
        seed: Of the sampling.
    """

    def __init__(self, size: int, n_envs: int, *, seed: int = 0) -> None:
        if size < n_envs:
            raise ValueError(f"size is {size}, expected at least one transition for each of {n_envs} environments")
        self.buffer = _Rings(size, n_envs, seed)

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
            require_finite_rows(key, transitions[key], env_ids)
        floats = {k: transitions[k] for k in ("obs", "act", "obs_next") if transitions[k].dtype == np.float64}
        if floats:
            narrow = {key: values.astype(np.float32) for key, values in floats.items()}
            transitions = Batch({**transitions, **narrow})
        self.buffer.add(transitions, buffer_ids=env_ids)

    def all(self) -> Batch:
        """All transitions, environment by environment, each in the order of time."""
        if not len(self):
            raise ValueError("the replay is empty, expected at least one transition")
        return cast(Batch, self.buffer[self.buffer.sample_indices(0)])


def require_finite_rows(name: str, values: NDArray[Any], env_ids: NDArray[np.int64]) -> None:
    """Raise, naming the environment, if a row of `values` (n, ...) is not finite."""
    # The sum is not finite if a term is not: one pass for the usual case. It may overflow, which then is looked into.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):
            return
    finite = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} of environment {env_ids[row]} is {values[row].tolist()}, expected finite numbers")
