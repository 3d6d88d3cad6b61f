"""How long a training will take at least, from the time of one decision."""

import time
from typing import Any

import numpy as np
import torch
from tianshou.data import Batch

from experiments.run.config import RunConfig
from layeredrl.hierarchy import Hierarchy
from layeredrl.randomness import fork_globals, seed_globals
from layeredrl.task import TaskSpec

FEW = 5000
"""Environment steps below which no training takes hours."""
LONG_S = 6 * 3600.0
"""Seconds from which the duration is printed before the training starts."""


def seconds_of_decisions(config: RunConfig[Any], task: TaskSpec, n_env_steps: int) -> float:
    """Seconds that all decisions of a training take, without learning and without environments.

    Args:
        config: Settings of the run.
        task: Task of its environments.
        n_env_steps: Environment steps that are left, all instances together.
    """
    with fork_globals():
        seed_globals(config.seed)
        agent: Hierarchy = config.settings.build(task, torch.device(config.device), seed=config.seed)
        carry, env_ids = agent.initial_carry(config.n_envs, 0), np.arange(config.n_envs)
        obs, zeros = np.zeros((config.n_envs, task.observation_dim), np.float32), np.zeros(config.n_envs)
        step = Batch(rew=zeros, terminated=zeros > 0, truncated=zeros > 0, obs_next=obs)
        n_steps = max(getattr(agent.levels[0], "duration", 1), 1)  # of one decision at the top
        agent.act(obs, carry, explore=False)  # allocates memory
        agent.reset(carry, env_ids)
        start = time.perf_counter()
        for _ in range(n_steps):
            agent.act(obs, carry, explore=False)
            agent.observe(step, env_ids, carry, learn=False)
        seconds = time.perf_counter() - start
    return seconds / n_steps * n_env_steps / config.n_envs


def print_long(config: RunConfig[Any], task: TaskSpec, n_env_steps: int) -> None:
    """Print the duration of a training that takes more than hours, before it starts."""
    if n_env_steps < FEW:
        return
    seconds = seconds_of_decisions(config, task, n_env_steps)
    if seconds >= LONG_S:
        days, hours = seconds / 86_400, seconds / 3600
        duration = f"{days:.1f} days" if days >= 1 else f"{hours:.0f} hours"
        print(f"{n_env_steps:,} environment steps will take at least {duration} on this machine, for decisions alone.")
