"""Predicted returns, compared with the achieved ones."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Forecasts:
    """Keeps at most one predicted return for each environment, and accumulates the achieved one.

    Args:
        n_envs: Number of environments E.
        discount: Discount per environment step of the predicted returns.
    """

    def __init__(self, n_envs: int, discount: float) -> None:
        self.discount = discount
        self.predicted = np.zeros(n_envs)
        self.achieved = np.zeros(n_envs)
        self.weight = np.ones(n_envs)
        self.remaining = np.zeros(n_envs, np.int64)

    def open(self, env_ids: NDArray[np.int64], predicted: NDArray[np.floating], n_steps: int) -> None:
        """Add predictions (n,) for environments (n,), NaN for none; a pending one is kept."""
        fresh = np.isfinite(predicted) & (self.remaining[env_ids] == 0)
        ids = env_ids[fresh]
        self.predicted[ids], self.achieved[ids] = predicted[fresh], 0.0
        self.weight[ids], self.remaining[ids] = 1.0, n_steps

    def step(
        self,
        env_ids: NDArray[np.int64],
        rewards: NDArray[np.floating],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], NDArray[np.floating], NDArray[np.floating]]:
        """Process a step of some environments, arrays (n,).

        A prediction is settled when its steps are over or the episode has terminated. It is dropped where the episode
        is truncated before that.

        Returns:
            Environments whose prediction is settled, predicted returns, and achieved returns.
        """
        waiting = self.remaining[env_ids] > 0
        self.achieved[env_ids] += np.where(waiting, self.weight[env_ids] * rewards, 0.0)
        self.weight[env_ids] *= self.discount
        self.remaining[env_ids] -= waiting
        settled = waiting & (terminated | (self.remaining[env_ids] == 0))
        self.remaining[env_ids[terminated | truncated]] = 0
        ids = env_ids[settled]
        return ids, self.predicted[ids], self.achieved[ids]

    def drop(self, env_ids: NDArray[np.int64]) -> None:
        """Forget the predictions of some environments."""
        self.remaining[env_ids] = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The pending predictions."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name in _STATE:
            getattr(self, name)[:] = state[name].cpu().numpy()


_STATE = ("predicted", "achieved", "weight", "remaining")
