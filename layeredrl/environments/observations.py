"""The last good observations of vector environments."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from layeredrl.environments.answers import Failure, all_finite, require_finite


class LastObservations:
    """The last finite observation of each environment, in one array or nest of arrays.

    Args:
        space: Observation space of a single environment.
        n_envs: Number of environments.
    """

    def __init__(self, space: spaces.Space[Any], n_envs: int) -> None:
        self._space, self._batch_space = space, batch_space(space, n_envs)
        # Two arrays in turn: one holds the observations, the next ones are gathered in the other.
        self._obs: Any
        self._spare: Any
        self._obs, self._spare = (create_empty_array(space, n_envs) for _ in range(2))

    def copy(self) -> Any:
        """Return a copy of the observations of all environments."""
        return self._obs.copy() if isinstance(self._obs, np.ndarray) else deepcopy(self._obs)

    def place(self, rows: Mapping[int, Any]) -> None:
        """Replace the observations of some environments by finite ones."""
        if isinstance(self._obs, np.ndarray):
            for i, row in rows.items():
                self._obs[i] = row
        else:
            last = iterate(self._batch_space, self._obs)
            self.gather([rows.get(i, row) for i, row in enumerate(last)], {})

    def gather(self, rows: list[Any], failures: dict[int, Failure]) -> None:
        """Replace all observations, but for those of environments that failed.

        Args:
            rows: New observations, one for each environment; ignored where there is a failure.
            failures: Failures by environment; one is added for each observation that is not finite.
        """
        if failures:
            last = list(iterate(self._batch_space, self._obs))
            rows = [last[i] if i in failures else row for i, row in enumerate(rows)]
        obs: Any = self._spare
        if isinstance(obs, np.ndarray):  # the same as concatenate, in a third of the time
            for i, row in enumerate(rows):
                obs[i] = row
        else:
            obs = concatenate(self._space, rows, obs)
        if not all_finite(self._space, obs):
            for i, row in enumerate(rows):
                try:
                    require_finite(self._space, row)
                except Failure as failure:
                    failures[i] = failure
            self.gather(rows, failures)
            return
        self._obs, self._spare = obs, self._obs
