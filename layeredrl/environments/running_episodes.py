"""Episodes under way, kept as a seed and actions: how environments that cannot be saved come back after a stop."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray


class RunningEpisodes:
    """For each environment, the seed that its episode began with and all actions since then.

    Args:
        n_envs: Number of environments E.
    """

    def __init__(self, n_envs: int) -> None:
        self.seeds = np.zeros(n_envs, np.int64)
        self.actions: list[list[NDArray[Any]]] = [[] for _ in range(n_envs)]

    def begin(self, env_ids: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        """Episodes begin in some environments, with seeds (n,)."""
        self.seeds[env_ids] = seeds
        for i in env_ids:
            self.actions[i] = []

    def add(self, env_ids: NDArray[np.int64], actions: NDArray[Any]) -> None:
        """Actions (n, A) are taken."""
        for i, action in zip(env_ids, actions, strict=True):
            self.actions[i].append(action)

    def play_again(
        self, env: VectorEnv[Any, Any, Any], to_env: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> tuple[Any, NDArray[np.bool_]]:
        """Bring environments, which do not reset themselves, to where they were.

        All of them have to step together, so that shorter episodes begin later. Until then their environment plays
        them over and over, which is known to do no harm.

        Args:
            env: Fresh environments.
            to_env: Turns actions (E, A) into what `env` takes.

        Returns:
            The last observations, as the environments have them, and which episodes ended on the way, (E,): these
            environments do not repeat themselves.
        """
        lengths = np.array([len(actions) for actions in self.actions])
        longest = int(lengths.max())
        seeds: Any = [int(seed) for seed in self.seeds]
        obs, _ = env.reset(seed=seeds)
        over, failed = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
        any_actions = self.actions[int(lengths.argmax())]  # where there are none of its own
        for t in range(longest):
            turn = (t - longest) % np.maximum(lengths, 1)  # which of its actions is each environment's next
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
        """Seeds, and the actions of each environment as one tensor (T, A)."""
        actions = [torch.from_numpy(np.stack(a)) if a else torch.zeros(0) for a in self.actions]
        return {"seeds": torch.from_numpy(self.seeds.copy()), "actions": actions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if len(state["actions"]) != len(self.actions):
            raise ValueError(
                f"the state has episodes of {len(state['actions'])} environments, expected {len(self.actions)}"
            )
        self.seeds = state["seeds"].cpu().numpy().copy()
        self.actions = [list(actions.cpu().numpy()) for actions in state["actions"]]
