"""Predicted returns, compared with the achieved ones: on the host, and on a device."""

from collections.abc import Mapping
from typing import Any

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


class TensorForecasts:
    """`Forecasts` of environments on a device.

    Args:
        n_envs: Number of environments E.
        discount: Discount per environment step of the predicted returns.
        device: Device of the environments.
    """

    def __init__(self, n_envs: int, discount: float, device: torch.device) -> None:
        self.discount, self.in_use = discount, False
        self.predicted = torch.zeros(n_envs, dtype=torch.float64, device=device)
        self.achieved, self.weight = torch.zeros_like(self.predicted), torch.ones_like(self.predicted)
        self.remaining = torch.zeros(n_envs, dtype=torch.int64, device=device)

    def open(self, rows: Any, predicted: Tensor, n_steps: int) -> None:
        """Add predictions (n,) for some environments, NaN for none; a pending one is kept.

        Args:
            rows: Index of tensors of all environments: indices (n,), or a slice.
            predicted: Predicted returns, (n,).
            n_steps: Environment steps of which they are the return.
        """
        self.in_use = True
        waiting = self.remaining[rows]
        fresh = predicted.isfinite() & (waiting == 0)
        for name, value in (("predicted", predicted.double()), ("achieved", 0.0), ("weight", 1.0)):
            column = getattr(self, name)
            column[rows] = torch.where(fresh, value, column[rows])
        self.remaining[rows] = torch.where(fresh, n_steps, waiting)

    def step(self, reward: Tensor, terminated: Tensor, done: Tensor) -> tuple[Tensor, Tensor] | None:
        """Process a step of all environments, tensors (E,); see `Forecasts.step`.

        Returns:
            Predicted and achieved returns, (E,) each, NaN where no prediction is settled; None if there never was one.
        """
        if not self.in_use:
            return None
        waiting = self.remaining > 0
        self.achieved += torch.where(waiting, self.weight * reward, 0.0)
        self.weight *= self.discount
        self.remaining -= waiting.long()
        settled = waiting & (terminated | (self.remaining == 0))
        self.remaining.masked_fill_(done, 0)
        return torch.where(settled, self.predicted, torch.nan), torch.where(settled, self.achieved, torch.nan)

    def drop(self, over: Tensor | None) -> None:
        """Forget the predictions of some environments, a mask (E,); None for all."""
        if self.in_use:
            self.remaining.masked_fill_(self.remaining >= 0 if over is None else over, 0)

    def state_dict(self) -> dict[str, Any]:
        """The pending predictions."""
        return {name: getattr(self, name).clone() for name in _STATE} | {"in_use": self.in_use}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in _STATE:
            getattr(self, name).copy_(state[name])
        self.in_use = bool(state["in_use"])
