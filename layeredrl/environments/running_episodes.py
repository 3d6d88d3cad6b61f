"""Running episodes as seeds and actions: restores environments whose state cannot be saved."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray


class RunningEpisodes:
    """Seed and actions of the running episode of each environment.

    Args:
        n_envs: Number of environments E.
    """

    def __init__(self, n_envs: int) -> None:
        self.seeds = np.zeros(n_envs, np.int64)
        self.actions: list[list[NDArray[Any]]] = [[] for _ in range(n_envs)]

    def begin(self, env_ids: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Record that episodes begin in some environments (n,), with seeds (n,)."""
        self.seeds[env_ids] = seeds
        for i in env_ids:
            self.actions[i] = []

    def add(self, env_ids: NDArray[np.int64], actions: NDArray[Any]) -> None:
        """Record actions (n, A) of some environments (n,)."""
        for i, action in zip(env_ids, actions, strict=True):
            self.actions[i].append(action)

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
        lengths = np.array([len(actions) for actions in self.actions])
        longest = int(lengths.max())
        seeds: Any = [int(seed) for seed in self.seeds]
        obs, _ = env.reset(seed=seeds)
        over, failed = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
        any_actions = self.actions[int(lengths.argmax())]  # for environments without actions of their own
        for t in range(longest):
            turn = (t - longest) % np.maximum(lengths, 1)  # index of each environment's next action
            last_round = t >= longest - lengths
            failed |= over & last_round & (turn > 0)
            mask = over | (turn == 0)
            if t and mask.any():
                env.reset(seed=seeds, options={"reset_mask": mask})
            row = [actions[turn[i]] if actions else any_actions[0] for i, actions in enumerate(self.actions)]
            obs, _, terminated, truncated, _ = env.step(to_env(np.stack(row)))
            over = terminated | truncated
        failed |= over & (lengths > 0)
        mask = over | (lengths == 0)
        if longest and mask.any():
            obs, _ = env.reset(seed=seeds, options={"reset_mask": mask})
        return obs, failed

    def state_dict(self) -> dict[str, Any]:
        """Return seeds (E,) and the actions of each environment as one tensor (T, A)."""
        actions = [torch.from_numpy(np.stack(a)) if a else torch.zeros(0) for a in self.actions]
        return {"seeds": torch.from_numpy(self.seeds.copy()), "actions": actions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        if len(state["actions"]) != len(self.actions):
            raise ValueError(
                f"the state has episodes of {len(state['actions'])} environments, expected {len(self.actions)}"
            )
        self.seeds = state["seeds"].cpu().numpy().copy()
        self.actions = [list(actions.cpu().numpy()) for actions in state["actions"]]
