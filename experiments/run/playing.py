"""Episodes of an agent that does not learn."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from experiments.run.building import make_envs
from experiments.run.config import RunConfig
from layeredrl.action_spaces import to_env
from layeredrl.collector import Collector
from layeredrl.environments import UnknownEnvironmentError
from layeredrl.episodes import Episode
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy


def play(
    config: RunConfig[Any], agent: Hierarchy, n_episodes: int, seed: int, stop: Callable[[], bool] = lambda: False
) -> list[Episode]:
    """Play episodes without exploration, in new environments; return none once `stop` returns True."""
    try:
        with new_episodes(config, agent, n_episodes, seed) as collector:
            return collector.collect_episodes(n_episodes, max_steps=config.trainer.eval_max_steps, stop=stop)
    except UnknownEnvironmentError as error:  # the run's own could be made, but no more of them
        raise Fault(str(error)) from error


@contextlib.contextmanager
def new_episodes(config: RunConfig[Any], agent: Hierarchy, n_episodes: int, seed: int) -> Iterator[Collector]:
    """Give a collector that plays episodes without learning, in new environments."""
    env = make_envs(config, min(n_episodes, 8))
    try:
        yield Collector(env, agent, seed=seed, learn=False)
    finally:
        env.close()


@dataclass(frozen=True)
class Track:
    """Observations, actions and rewards of an episode, from some step on."""

    obs: NDArray[np.float32]
    """Observations, the first one before the first action, (T+1, O)."""
    act: NDArray[Any]
    """Actions, (T, A)."""
    rew: NDArray[np.float64]
    """Rewards, (T,)."""

    def after(self, step: int) -> "Track":
        """Return the part from a later step on."""
        return Track(self.obs[step:], self.act[step:], self.rew[step:])

    def coarse(self, length: int, discount: float) -> "Track":
        """Return the track in steps of `length` environment steps, of which the end may cut the last one short.

        Args:
            length: Number of environment steps of a step.
            discount: Factor of rewards within a step, for each environment step since its start.
        """
        n = len(self.rew)
        starts = np.arange(0, n, length)
        factors = discount ** (np.arange(n) % length)
        rew = np.add.reduceat(factors * self.rew, starts) if n else self.rew
        return Track(self.obs[np.append(starts, n)], self.act[starts], rew)


class Moment(NamedTuple):
    """Input of an agent's decision."""

    obs: Tensor
    """Observation, (1, O)."""
    memory: Batch
    """Memory of the top level."""
    generator: torch.Generator
    """Random generator of acting, in its state before the decision."""


def play_track(
    env: VectorEnv[Any, Any, Any], agent: Hierarchy, actions: NDArray[Any] | None, *, n_steps: int, seed: int
) -> tuple[Track, list[Moment]]:
    """Play an episode until the environment ends it.

    Args:
        env: A single environment; it is closed at the end.
        agent: Agent that acts without exploration, if no actions are given.
        actions: Actions to take instead, (n_steps, A).
        n_steps: Maximum number of steps.
        seed: Random seed of the environment and of acting.

    Returns:
        The track of the episode, and the input of the decision at every step.
    """
    carry = agent.initial_carry(1, seed)
    raw, _ = env.reset(seed=seed)
    seen, taken, rewards, moments = [agent.task.flatten(raw)], [], [], []
    try:
        for t in range(n_steps):
            obs = torch.as_tensor(seen[-1], device=agent.device)
            moments.append(Moment(obs, carry.levels[0].memory, carry.generator.clone_state()))
            act = agent.act(seen[-1], carry, explore=False) if actions is None else actions[None, t]
            raw, reward, terminated, truncated, _ = env.step(to_env(agent.task.action_space, act))
            seen.append(agent.task.flatten(raw))
            taken.append(act[0])
            rewards.append(float(reward[0]))
            step = Batch(rew=reward, terminated=terminated, truncated=truncated, obs_next=seen[-1])
            agent.observe(step, np.arange(1), carry, learn=False)
            if terminated[0] or truncated[0]:
                break
    finally:
        env.close()
    return Track(np.concatenate(seen), np.array(taken), np.array(rewards)), moments
