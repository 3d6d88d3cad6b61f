"""Facts of a task that decide about an agent's settings, measured in random steps."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from layeredrl import action_spaces
from layeredrl.environments.action_repeat import ActionRepeat
from layeredrl.randomness import fork_globals, seed_globals
from layeredrl.task import TaskSpec

N_STEPS = 1000
"""Environment steps that are tried: an episode of most tasks, some of those that end soon."""
EXPLAINED = 0.99
"""Share of the rewards' variance from which they count as given by the actions alone."""


@dataclass(frozen=True)
class TaskFacts:
    """Size of a task, its known functions, and properties of its episodes with random actions."""

    state_dim: int
    """Width of the flat observation, without the goal."""
    action_dim: int
    """Width of an action as networks see it: one for each choice of discrete ones."""
    discrete: bool
    """True if actions are integers."""
    reward_known: bool
    """True if the environment declares its reward as a function."""
    termination_known: bool
    """True if the environment declares its termination as a function."""
    episode_steps: int | None = None
    """Steps after which an episode is cut off; None if the environment does not say so, and none was."""
    ends_after: float | None = None
    """Mean steps until an episode of random actions ended by itself; None if none did."""
    silent: bool = False
    """True if random actions found nothing to learn from: rewards do not depend on the state, and no episode ended."""
    mean_reward: float = 0.0
    """Mean reward of random actions; 0 if they were not tried."""


def read_facts(env: gym.Env[Any, Any], task: TaskSpec) -> TaskFacts:
    """Take random steps in an environment, with seeds of their own, and return the facts.

    Args:
        env: The environment, in its own units; it is reset and stepped.
        task: Its task. An environment that fails leaves the facts of the task alone.
    """
    goal = task.slices.get("desired_goal", slice(0, 0))
    facts: dict[str, Any] = {
        "state_dim": task.observation_dim - (goal.stop - goal.start),
        "action_dim": action_spaces.n_features(task.action_space),
        "discrete": action_spaces.is_discrete(task.action_space),
        "reward_known": task.reward is not None,
        "termination_known": task.termination is not None,
        "episode_steps": _declared_limit(env),
    }
    try:
        with fork_globals():
            seed_globals(0)  # an environment may draw from the global generators
            tried = _try(env, task)
    except KeyboardInterrupt:
        raise
    except BaseException:  # an environment that fails is found, and named, where it acts for the agent
        return TaskFacts(**facts)
    facts["episode_steps"] = tried.episode_steps or facts["episode_steps"]  # a wrapper may cut episodes earlier
    facts["mean_reward"] = float(np.nan_to_num(tried.reward.mean()))
    return TaskFacts(**facts, ends_after=tried.ends_after, silent=tried.silent)


def _declared_limit(env: gym.Env[Any, Any]) -> int | None:
    """Steps of the longest episode, by the declared limit, which counts frames if actions are repeated outside it."""
    frames = None if env.spec is None else env.spec.max_episode_steps
    if frames is None:
        return None
    n_repeats = 1
    while isinstance(env, gym.Wrapper) and not isinstance(env, TimeLimit):  # the outermost limit is the declared one
        n_repeats *= env.n_frames if isinstance(env, ActionRepeat) else 1
        env = env.env
    return -(-frames // n_repeats)


@dataclass(frozen=True)
class _Tried:
    action: NDArray[np.float64]
    """As networks see them, (T, F)."""
    reward: NDArray[np.float64]
    """(T,)."""
    n_ended: int
    """Episodes that ended by themselves."""
    episode_steps: int | None
    """Steps of the first episode that was cut off."""

    @property
    def ends_after(self) -> float | None:
        return N_STEPS / self.n_ended if self.n_ended else None

    @property
    def silent(self) -> bool:
        """True if no episode ended, and a quadratic function of the action gives the rewards."""
        if self.n_ended:
            return False
        if not np.isfinite(self.reward).all():
            return False
        centred = self.reward - self.reward.mean()
        if np.abs(centred).max() <= 1e-6 * max(1.0, np.abs(self.reward).max()):
            return True
        features = np.concatenate([self.action, self.action**2, np.ones((len(self.action), 1))], 1)
        rest = self.reward - features @ np.linalg.lstsq(features, self.reward)[0]
        return bool(rest @ rest < (1 - EXPLAINED) * (centred @ centred))


def _try(env: gym.Env[Any, Any], task: TaskSpec) -> _Tried:
    generator = torch.Generator().manual_seed(0)
    drawn = action_spaces.uniform(task.action_space, (N_STEPS,), generator)
    taken = action_spaces.to_env(task.action_space, task.to_env_units(drawn).numpy())
    if isinstance(env.action_space, gym.spaces.Box):
        taken = np.clip(taken, env.action_space.low, env.action_space.high).astype(env.action_space.dtype)
    rewards, n_ended, start, episode_steps = [], 0, 0, None
    env.reset(seed=0)
    for i in range(N_STEPS):
        _, reward, terminated, truncated, _ = env.step(taken[i])
        rewards.append(float(reward))
        if terminated or truncated:
            n_ended += bool(terminated)
            if truncated and episode_steps is None:
                episode_steps = i + 1 - start
            start = i + 1
            env.reset(seed=start)
    features = action_spaces.features(task.action_space, drawn).numpy().astype(np.float64)
    return _Tried(features, np.array(rewards), n_ended, episode_steps)
