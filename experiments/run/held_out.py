"""Held-out data to measure a model on: transitions and trajectories from any environment, under any policy."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from experiments.run.config import RunConfig
from layeredrl.collector import Collector
from layeredrl.environments import EnvConfig, EnvPool, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ImaginingLevel, PlannerLevel, RandomLevel
from layeredrl.observation_offset import ObservationOffset
from layeredrl.task import TaskSpec
from layeredrl.world_model import WorldModel


def collect(
    env: str | EnvConfig | Callable[[], gym.Env[Any, Any]],
    agent: Hierarchy | None = None,
    *,
    n_steps: int,
    seed: int,
    offset: ObservationOffset | None = None,
) -> Batch:
    """Collect transitions in order, from an agent that acts without exploration or from random actions.

    Args:
        env: A registered id, the recipe of an environment, or a function that makes one; Box actions of the last are
            not rescaled.
        agent: Agent that acts and does not learn; None for uniformly random actions.
        n_steps: Number of environment steps.
        seed: Random seed of the environment and of acting.
        offset: Offset of observations without an agent; that of the model that they are for.

    Returns:
        Batch with `obs` (N, O), `act` (N, A), `obs_next` (N, O), `terminated` and `truncated` (N).
    """
    vector_env = make_vector_env(env) if isinstance(env, str | EnvConfig) else EnvPool([env])
    kept: list[Batch] = []
    try:
        if agent is None:
            observations: Any = vector_env.single_observation_space  # of a kind that TaskSpec checks
            task = TaskSpec(observations, vector_env.single_action_space, offset=offset)
            agent = Hierarchy([RandomLevel(task.action_space)], task)
        collector = Collector(vector_env, agent, seed=seed, learn=False, on_step=lambda step, _: kept.append(step))
        while collector.n_total_env_steps < n_steps:
            collector.step(explore=False)
    finally:
        vector_env.close()
    return Batch.cat(kept)


def transitions(data: Batch, world: WorldModel | None = None) -> Batch:
    """Return collected data as a model takes them: `state` (N, S), `context` (N, C), `act` (N, A), `state_next` (N, S).

    Args:
        data: Data from `collect`.
        world: World model whose encoder and device are used; None: the observation is the state, on the CPU.
    """
    device = "cpu" if world is None else world.dynamics.device
    obs, act, obs_next = (torch.as_tensor(data[key], device=device) for key in ("obs", "act", "obs_next"))
    if world is None:
        return Batch(state=obs, context=obs[:, :0], act=act, state_next=obs_next)
    state, context = world.encode(obs)
    return Batch(state=state, context=context, act=act, state_next=world.encode(obs_next)[0])


def longest_episode(data: Batch) -> int:
    """Return the number of steps of the longest episode, or part of one, in data from `collect`."""
    return int(np.diff(_borders(data)).max())


def trajectories(data: Batch, horizon: int, world: WorldModel | None = None) -> Batch:
    """Return pieces of H steps, none across episodes: `state` (N, H+1, S), `context` (N, C), `act` (N, H, A).

    Args:
        data: Data from `collect`.
        horizon: Number of steps H.
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
    """Return rows off the distribution of the data: states moved `factor` times as far from their mean.

    Args:
        data: Data from `transitions`.
        factor: Factor of the distance to the mean.
    """
    center: Tensor = data.state.mean(0)
    return Batch(state=center + factor * (data.state - center), context=data.context, act=data.act)


def _borders(data: Batch) -> NDArray[np.int64]:
    """Return the indices at which episodes begin, and the length of the data."""
    ends = np.flatnonzero(data.terminated | data.truncated) + 1
    return np.unique(np.concatenate([[0], ends, [len(data.obs)]]))


def world_model_of(agent: Hierarchy) -> WorldModel | None:
    """Return the world model of the environment's own actions, with which the agent plans or imagines; None without."""
    level = agent.levels[0]
    if isinstance(level, ImaginingLevel):
        return level.learner.world
    return level.world if isinstance(level, PlannerLevel) and len(agent.levels) == level.duration == 1 else None


def collect_held_out(config: RunConfig[Any], agent: Hierarchy, seed: int, n_steps: int = 400) -> Batch:
    """Collect transitions that no model was trained on: half by the agent, half by random actions.

    Returns:
        Batch with `obs` (N, O), `act` (N, A), `obs_next` (N, O).
    """
    settings: Any = {"n_steps": n_steps // 2, "seed": seed, "offset": agent.task.offset}
    parts = [collect(config.environment, actor, **settings) for actor in (agent, None)]
    return Batch.cat(parts)
