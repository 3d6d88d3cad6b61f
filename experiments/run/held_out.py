"""Fresh data to judge a model by: transitions and trajectories from any environment, under any policy."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.collector import Collector
from layeredrl.environments import make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.task import TaskSpec
from layeredrl.world_model import WorldModel


def collect(
    env: str | Callable[[], gym.Env[Any, Any]], agent: Hierarchy | None = None, *, n_steps: int, seed: int
) -> Batch:
    """Let an agent act without exploration, or random actions be taken, and keep what happens in its order.

    Args:
        env: A registered id, or what makes an environment; Box actions of the latter are taken as they are.
        agent: Acts, and learns nothing; None for uniformly random actions.
        n_steps: How many environment steps.
        seed: Of the environment and of acting.

    Returns:
        Batch with `obs` (N, O), `act` (N, A), `obs_next` (N, O), `terminated` and `truncated` (N).
    """
    vector_env = (
        make_vector_env(env) if isinstance(env, str) else SyncVectorEnv([env], autoreset_mode=AutoresetMode.DISABLED)
    )
    kept: list[Batch] = []
    try:
        if agent is None:
            observations: Any = vector_env.single_observation_space  # of a kind that TaskSpec checks
            task = TaskSpec(observations, vector_env.single_action_space)
            agent = Hierarchy([RandomLevel(task.action_space)], task)
        collector = Collector(vector_env, agent, seed=seed, learn=False, on_step=lambda step, _: kept.append(step))
        while collector.n_total_env_steps < n_steps:
            collector.step(explore=False)
    finally:
        vector_env.close()
    return Batch.cat(kept)


def transitions(data: Batch, world: WorldModel | None = None) -> Batch:
    """What was collected, as a model wants it: `state`, `context`, `act`, `state_next`.

    Args:
        data: From `collect`.
        world: Its encoder tells state from context, its device is used; None: the observation is the state, on the CPU.
    """
    device = "cpu" if world is None else world.dynamics.device
    obs, act, obs_next = (torch.as_tensor(data[key], device=device) for key in ("obs", "act", "obs_next"))
    if world is None:
        return Batch(state=obs, context=obs[:, :0], act=act, state_next=obs_next)
    state, context = world.encode(obs)
    return Batch(state=state, context=context, act=act, state_next=world.encode(obs_next)[0])


def longest_episode(data: Batch) -> int:
    """Steps of the longest episode, or piece of one, in what `collect` returned."""
    return int(np.diff(_borders(data)).max())


def trajectories(data: Batch, horizon: int, world: WorldModel | None = None) -> Batch:
    """Pieces of `horizon` steps, none across the end of an episode: `state` (N, H+1, S), `context`, `act` (N, H, A).

    Args:
        data: From `collect`.
        horizon: H.
        world: As in `transitions`.

    Raises:
        ValueError: No episode is that long.
    """
    borders = _borders(data)
    starts = [s for a, b in pairwise(borders) for s in range(a, b - horizon + 1, horizon)]
    if not starts:
        raise ValueError(f"horizon is {horizon}, expected at most {longest_episode(data)}, as the longest episode")
    rows = transitions(data, world)
    index = torch.as_tensor(np.add.outer(starts, np.arange(horizon)), device=rows.state.device)
    first = index[:, 0]
    states = torch.cat([rows.state[index], rows.state_next[index[:, -1:]]], 1)
    return Batch(state=states, context=rows.context[first], act=rows.act[index])


def displaced(data: Batch, factor: float = 3.0) -> Batch:
    """Rows off the distribution of `data`: its states, `factor` times as far from their mean.

    Args:
        data: From `transitions`.
        factor: How much farther.
    """
    center: Tensor = data.state.mean(0)
    return Batch(state=center + factor * (data.state - center), context=data.context, act=data.act)


def _borders(data: Batch) -> NDArray[np.int64]:
    """Where episodes begin, and the end of the data."""
    ends = np.flatnonzero(data.terminated | data.truncated) + 1
    return np.unique(np.concatenate([[0], ends, [len(data.obs)]]))
