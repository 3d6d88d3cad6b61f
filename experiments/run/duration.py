"""How long a training will take at least, from the time of one decision."""

import time
from typing import Any

import numpy as np

from experiments.run.building import build_agent
from experiments.run.config import RunConfig
from layeredrl.randomness import fork_globals

FEW = 5000
"""Environment steps that no agent needs hours for."""
LONG_S = 6 * 3600.0
"""Seconds from which a person is told before the training starts."""


def seconds_of_decisions(config: RunConfig[Any], n_env_steps: int) -> float:
    """Seconds that all decisions of a training take, without learning and without environments.

    Args:
        config: Settings of the run.
        n_env_steps: Environment steps that are left, all instances together.
    """
    with fork_globals():
        agent = build_agent(config)
        carry = agent.initial_carry(config.n_envs, 0)
        obs = np.zeros((config.n_envs, agent.task.observation_dim), np.float32)
        times = []
        for _ in range(2):  # the first one allocates its memory
            agent.reset(carry, np.arange(config.n_envs))
            start = time.perf_counter()
            agent.act(obs, carry, explore=False)
            times.append(time.perf_counter() - start)
    return min(times) * n_env_steps / config.n_envs


def print_long(config: RunConfig[Any], n_env_steps: int) -> None:
    """Tell a person whose training takes more than hours, before it starts."""
    if n_env_steps < FEW:
        return
    seconds = seconds_of_decisions(config, n_env_steps)
    if seconds >= LONG_S:
        days, hours = seconds / 86_400, seconds / 3600
        told = f"{days:.1f} days" if days >= 1 else f"{hours:.0f} hours"
        print(f"{n_env_steps:,} environment steps will take at least {told} on this machine, for decisions alone.")
