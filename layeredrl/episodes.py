"""Finished episodes, and playing a number of them."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from layeredrl.checks import require_count
from layeredrl.hierarchy import Hierarchy


@dataclass(frozen=True)
class Episode:
    """A finished episode."""

    env_id: int
    """Index of the environment."""
    episode_return: float
    """Undiscounted sum of its rewards."""
    length: int
    """Environment steps."""
    n_total_env_steps: int
    """Environment steps that the Collector had taken when the episode ended."""
    success: bool | None = None
    """True if the environment reported success in any of its steps; None if it never reported success or failure."""


class EpisodeCollector(ABC):
    """Lets an agent act in a number of environments.

    Attributes:
        agent: The agent.
        n_envs: Number of environments.
        n_total_env_steps: Environment steps so far, all environments summed.
    """

    agent: Hierarchy
    n_envs: int
    n_total_env_steps: int

    @abstractmethod
    def step(self, *, explore: bool) -> list[Episode]:
        """Take one step in every environment.

        Args:
            explore: If True, the agent explores; if False, it acts as well as it can.

        Returns:
            The episodes that ended.
        """

    def collect_episodes(
        self,
        n: int,
        *,
        explore: bool = False,
        max_steps: int = 5_000,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Episode]:
        """Play n episodes from their beginning.

        Every environment plays an equal share, and further episodes are dropped: the first n to end in any
        environment would be the shortest.

        Args:
            n: Number of episodes.
            explore: If True, the agent explores.
            max_steps: Environment steps after which an episode is cut off, with a warning; it counts as truncated.
            stop: Called before every step; playing ends once it returns True.

        Returns:
            The episodes; none if `stop` returned True.
        """
        require_count("max_steps", max_steps)
        shares = [n // self.n_envs + (i < n % self.n_envs) for i in range(self.n_envs)]
        episodes: list[Episode] = []
        self._begin_all()
        while len(episodes) < n:
            if stop():
                return []
            for episode in [*self.step(explore=explore), *self._cut_off(max_steps)]:
                if shares[episode.env_id] > 0:
                    shares[episode.env_id] -= 1
                    episodes.append(episode)
        return episodes

    @abstractmethod
    def _begin_all(self) -> None:
        """Begin episodes in all environments, unless they are at a beginning."""

    @abstractmethod
    def _cut_off(self, max_steps: int) -> list[Episode]:
        """End the episodes that have taken `max_steps` steps, as truncated, with `warn_of_cut`."""

    @abstractmethod
    def take_metrics(self) -> dict[str, float]:
        """Return mean decision metrics and predicted and achieved returns since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Close the environments."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""


def warn_of_cut(max_steps: int) -> None:
    """Warn that an episode is cut off."""
    warnings.warn(
        f"an episode of an evaluation had not ended after {max_steps} steps; it is cut off there, and its return "
        "counts as it is",
        RuntimeWarning,
        stacklevel=4,
    )
