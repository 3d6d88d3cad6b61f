"""Running episodes as seeds and actions: restores environments whose state cannot be saved."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

MAX_STEPS = 100_000
"""Largest number of steps of an episode whose actions are kept."""
MAX_BYTES = 2**28
"""Largest size of the actions of all environments together, where these allow fewer steps."""


class RunningEpisodes:
    """Seed and actions of the running episode of each environment.

    An episode of more than `max_steps` steps cannot be replayed: an environment without an end would fill the memory.

    Args:
        n_envs: Number of environments E.

    Attributes:
        seeds: Seeds of the episodes, (E,).
        lengths: Numbers of actions that are kept, (E,).
        too_long: Mask of episodes with more steps than are kept, (E,).
        max_steps: Largest number of steps of an episode that are kept.
    """

    def __init__(self, n_envs: int) -> None:
        self.seeds = np.zeros(n_envs, np.int64)
        self.lengths = np.zeros(n_envs, np.int64)
        self.too_long = np.zeros(n_envs, np.bool_)
        self.max_steps = MAX_STEPS
        self._actions: NDArray[Any] = np.zeros((n_envs, 0))  # (E, capacity, A) from the first action on

    @property
    def actions(self) -> list[NDArray[Any]]:
        """Actions of each environment's episode, (T, A)."""
        return [self._actions[i, :length] for i, length in enumerate(self.lengths)]

    def begin(self, env_ids: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Record that episodes begin in some environments (n,), with seeds (n,)."""
        self.seeds[env_ids], self.lengths[env_ids], self.too_long[env_ids] = seeds, 0, False

    def add(self, env_ids: NDArray[np.int64], actions: NDArray[Any]) -> None:
        """Record actions (n, A) of some environments (n,)."""
        if not len(env_ids):
            return
        if self.lengths.max() >= self._actions.shape[1]:
            self._grow(actions)
        self.too_long[env_ids] |= self.lengths[env_ids] >= self.max_steps
        kept = ~self.too_long[env_ids]
        ids = env_ids[kept]
        self._actions[ids, self.lengths[ids]] = actions[kept]
        self.lengths[ids] += 1
        self.lengths[self.too_long] = 0

    def _grow(self, like: NDArray[Any]) -> None:
        """Double the room for actions, up to `max_steps`."""
        n_envs, capacity = self._actions.shape[:2]
        self.max_steps = max(1, min(MAX_STEPS, MAX_BYTES // (n_envs * like.dtype.itemsize * like.shape[1])))
        grown = np.zeros((n_envs, min(max(64, 2 * capacity), self.max_steps), like.shape[1]), like.dtype)
        if capacity:
            grown[:, :capacity] = self._actions
        self._actions = grown

    def play_again(
        self, env: VectorEnv[Any, Any, Any], to_env: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> tuple[Any, NDArray[np.bool_]]:
        """Replay the running episodes in environments that do not reset themselves.

        All environments step together, so that shorter episodes begin later. Until then their environments repeat
        them from a reset: sequences that are known to work.

        Args:
            env: Newly made environments.
            to_env: Turns actions (E, A) into actions of `env`.

        Returns:
            The last observations, in the structure of the environments, and a mask (E,) of episodes that ended
            early: these environments are not deterministic.
        """
        lengths, actions = self.lengths, self.actions
        longest = int(lengths.max())
        seeds: Any = [int(seed) for seed in self.seeds]
        obs, _ = env.reset(seed=seeds)
        over, failed = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
        any_actions = actions[int(lengths.argmax())]  # for environments without actions of their own
        for t in range(longest):
            turn = (t - longest) % np.maximum(lengths, 1)  # index of each environment's next action
            last_round = t >= longest - lengths
            failed |= over & last_round & (turn > 0)
            mask = over | (turn == 0)
            if t and mask.any():
                env.reset(seed=seeds, options={"reset_mask": mask})
            row = [own[turn[i]] if len(own) else any_actions[0] for i, own in enumerate(actions)]
            obs, _, terminated, truncated, _ = env.step(to_env(np.stack(row)))
            over = terminated | truncated
        failed |= over & (lengths > 0)
        mask = over | (lengths == 0)
        if longest and mask.any():
            obs, _ = env.reset(seed=seeds, options={"reset_mask": mask})
        return obs, failed | self.too_long

    def state_dict(self) -> dict[str, Any]:
        """Return seeds (E,), the actions of each environment as one tensor (T, A), and indices of too long episodes."""
        actions = [torch.from_numpy(a.copy()) if len(a) else torch.zeros(0) for a in self.actions]
        too_long = np.flatnonzero(self.too_long).tolist()
        return {"seeds": torch.from_numpy(self.seeds.copy()), "actions": actions, "too_long": too_long}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        if len(state["actions"]) != len(self.seeds):
            raise ValueError(
                f"the state has episodes of {len(state['actions'])} environments, expected {len(self.seeds)}"
            )
        actions = [own.cpu().numpy() for own in state["actions"]]
        self.seeds = state["seeds"].cpu().numpy().copy()
        self.lengths = np.array([len(own) for own in actions])
        self.too_long[:] = False
        self.too_long[state.get("too_long", [])] = True  # not in older checkpoints
        self._actions = np.zeros((len(actions), 0))
        while self._actions.shape[1] < self.lengths.max():
            self._grow(actions[int(self.lengths.argmax())])
        for i, own in enumerate(actions):
            if len(own):
                self._actions[i, : len(own)] = own
