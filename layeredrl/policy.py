"""A trained agent for a loop of one's own: observations and actions as the environment has them."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch

from layeredrl.action_spaces import Rescaling, to_env
from layeredrl.carry import Carry
from layeredrl.checks import require_count, require_finite_rows
from layeredrl.environments import EnvConfig, make_unscaled_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.lab import make_importable
from layeredrl.randomness import environment_and_acting_seeds, fork_globals


def load(folder: Path | str, *, device: str | None = None, best: bool = False, seed: int = 0) -> "Policy":
    """Load the trained agent of a run.

    The environments of the run are registered with gymnasium, so that `gymnasium.make` finds them. Global random
    generators and the number of torch's threads stay as they are; training uses one thread by default.

    Args:
        folder: Folder of the run, such as "runs/pets-Pendulum-v1-0", or wandb:ENTITY/PROJECT/NAME:latest for a model
            on W&B.
        device: Device of the agent: cpu, cuda, cuda:1; the one it was trained on by default.
        best: If True, load the kept checkpoint with the best score instead of the newest.
        seed: Random seed of acting.

    Raises:
        ValueError: The run cannot be read, its checkpoint does not fit its settings, or the device does not exist.
        ModuleNotFoundError: The agents and settings of runs are not importable.
    """
    make_importable()
    loading = import_module("experiments.run.loading")
    n_threads = torch.get_num_threads()
    try:
        with fork_globals(), loading.downloaded(Path(folder)) as path:
            config, agent, _ = loading.load(path, device=device, best=best)
    finally:
        torch.set_num_threads(n_threads)
    return Policy(agent, seed=seed, env=config.environment)


class Policy:
    """Acts as well as the agent can, without exploring or learning, and remembers what it did.

    Call `predict` once for every step of the environments: the call also tells the agent that the step before was
    taken. Call `reset` where the next observation is the first of an episode.

    Args:
        agent: The agent.
        seed: Random seed of acting. In one environment, the actions are those of a `Collector` with this seed.
        env: Recipe of the environment that the agent was trained in, for `make_env`.

    Attributes:
        agent: The agent.
        observation_space: Observation space of one environment.
        action_space: Action space of one environment, in its own units.
    """

    def __init__(self, agent: Hierarchy, *, seed: int = 0, env: EnvConfig | None = None) -> None:
        require_count("seed", seed, 0)
        self.agent, self.observation_space = agent, agent.task.observation_space
        self.action_space = agent.task.own_action_space
        self._rescaling = Rescaling(self.action_space) if isinstance(self.action_space, spaces.Box) else None
        _, acting_seed = environment_and_acting_seeds(seed)
        self._generator = torch.Generator(agent.device).manual_seed(acting_seed)
        self._carry: Carry | None = None
        self._env = env

    def make_env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """Make an environment as the agent was trained in, wrappers and repeated actions included, in its own units.

        Args:
            **kwargs: Further arguments of the environment, such as `render_mode`.

        Raises:
            ValueError: The policy is not that of a run, so that its environment is not known.
        """
        if self._env is None:
            raise ValueError("env is None, expected the recipe of an environment, which the policy of a run has")
        return make_unscaled_env(self._env, **kwargs)

    def predict(self, obs: Any) -> Any:
        """Return the actions of the next step.

        Args:
            obs: Observation of one environment as it returns it, (O,), or of n environments, (n, O); a dict of such
                arrays if the observation space is a Dict.

        Returns:
            For one environment, an action as its `step` takes it: an array (A,) in the environment's dtype, or an int
            if the action space is Discrete. For n environments, an array (n, A), or (n,) if it is Discrete.

        Raises:
            TypeError: The observation is of another kind than the observation space.
            ValueError: Its shape does not fit, it is not finite, or the number of environments has changed without
                a `reset`.
        """
        batch, single = _as_batch(obs, self.observation_space)
        flat = self.agent.task.flatten(batch)
        require_finite_rows("the observation", flat, np.arange(len(flat)))
        actions = self._act(flat)
        taken = to_env(self.action_space, actions) if self._rescaling is None else self._rescaling(actions)
        if not single:
            return taken
        return int(taken[0]) if isinstance(self.action_space, spaces.Discrete) else taken[0]

    def reset(self, ended: NDArray[np.bool_] | bool | None = None) -> None:
        """Forget the episode of all environments, or of some whose next observation is the first of an episode.

        Vector environments in gymnasium's mode NEXT_STEP, their default, return that observation one step after the
        end of the last episode, in SAME_STEP and DISABLED without such a delay.

        Args:
            ended: Mask of the environments, (n,), or a bool for a single one; None for all. Only after None may the
                number of environments change.

        Raises:
            TypeError: The mask holds other values than bools.
            ValueError: Its shape does not fit.
        """
        if ended is None:
            self._carry = None
            return
        mask = np.asarray(ended)
        if mask.dtype != bool:
            raise TypeError(f"ended is of {mask.dtype}, expected a mask of bools, one for each environment")
        if self._carry is None:
            return
        n = len(self._carry.unobserved)
        if mask.shape != (n,) and not (n == 1 and mask.shape == ()):
            raise ValueError(f"ended has shape {mask.shape}, expected ({n},), as there are {n} environments")
        self.agent.reset(self._carry, np.flatnonzero(mask))

    def _act(self, flat: NDArray[np.float32]) -> NDArray[Any]:
        """Observe that the last actions were carried out, and return the next, (n, A), for observations (n, O)."""
        if self._carry is None:
            self._carry = replace(self.agent.initial_carry(len(flat), seed=0), generator=self._generator)
        carry = self._carry
        if len(flat) != len(carry.unobserved):
            raise ValueError(
                f"obs is of {len(flat)} environments, expected {len(carry.unobserved)} as in the call before; "
                "call reset() before acting in another number of environments"
            )
        ids = np.flatnonzero(carry.unobserved)
        if len(ids):
            # Acting needs no rewards, and ends of episodes arrive by `reset`.
            running = np.zeros(len(ids), bool)
            step = Batch(rew=np.zeros(len(ids)), terminated=running, truncated=running, obs_next=flat[ids])
            self.agent.observe(step, ids, carry, learn=False)
        return self.agent.act(flat, carry, explore=False)


def _as_batch(obs: Any, space: spaces.Box | spaces.Dict) -> tuple[Any, bool]:
    """Return observations with an environment axis, and True if there was none: one environment alone."""
    if isinstance(space, spaces.Box):
        array, single = _part("obs", obs, space)
        return array, single
    if not isinstance(obs, Mapping):
        raise TypeError(f"obs is {type(obs).__name__}, expected a dict with {', '.join(space)}")
    if set(obs) != set(space):
        raise ValueError(f"obs holds {', '.join(map(str, obs))}, expected {', '.join(space)}")
    parts = {key: _part(f"obs[{key!r}]", obs[key], space[key]) for key in space}
    lengths = {key: None if single else len(array) for key, (array, single) in parts.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key}: {'one' if n is None else n}" for key, n in lengths.items())
        raise ValueError(f"the parts of obs are of different numbers of environments: {found}")
    return {key: array for key, (array, _) in parts.items()}, None in lengths.values()


def _part(name: str, value: Any, space: spaces.Space[Any]) -> tuple[NDArray[Any], bool]:
    """Return a part of an observation with an environment axis, (n, O), and True if there was none."""
    array, shape = np.asarray(value), space.shape
    assert shape is not None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} is {type(value).__name__} of {array.dtype}, expected an array of numbers")
    if array.shape == shape:
        return array[None], True
    if array.shape[1:] != shape or not len(array):
        many = ", ".join(("n", *map(str, shape)))
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}, or ({many}) for n environments")
    return array, False
