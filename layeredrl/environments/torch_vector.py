"""Environments that live on a device and are stepped together, as tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from layeredrl.environments.requests import masked, seeds_for
from layeredrl.transfers import to_device, to_host


class TorchStep(NamedTuple):
    """Result of a step of E environments, on their device."""

    obs: Tensor
    """Flat observations that the step led to, (E, O), float32; where an episode ended, its true last observation."""
    reward: Tensor
    """Rewards, (E,)."""
    terminated: Tensor
    """Shape (E,), bool."""
    truncated: Tensor
    """Shape (E,), bool."""
    success: Tensor | None = None
    """True where the step reached the goal, (E,); None if the task has none."""


class TorchVectorEnv(Protocol):
    """E environments on a device. None resets itself: those whose episode has ended are reset before the next step.

    Tensors that were returned are not written again. A method `close()` is called at the end, if there is one.

    Attributes:
        num_envs: Number of environments E.
        device: Their device.
        single_observation_space: Observation space of one of them; a Dict is flattened in its own order.
        single_action_space: Action space of one of them, in its own units.
    """

    num_envs: int
    device: torch.device
    single_observation_space: spaces.Space[Any]
    single_action_space: spaces.Space[Any]

    def reset(self, mask: Tensor | None = None, *, seeds: Sequence[int] | None = None) -> Tensor:
        """Begin episodes.

        Args:
            mask: True for environments to reset, (E,); None for all.
            seeds: A seed for each environment, of which those that are reset use theirs: their episodes then begin as
                the single environment's with this seed. This makes a GPU wait. None: drawn on the device.

        Returns:
            Observations of all environments, (E, O).
        """
        ...

    def step(self, actions: Tensor) -> TorchStep:
        """Take a step in all environments.

        Args:
            actions: In the environment's own units, (E, A), or integers (E, 1).
        """
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """Everything that the next steps depend on, as tensors and numbers; None if it cannot be had."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class HostVector(VectorEnv[Any, NDArray[Any], Any]):
    """Environments on a device as a vector environment of gymnasium, in the autoreset mode DISABLED.

    A step is one copy of the actions to the device, and one of all results from it.

    Args:
        env: The environments.
    """

    def __init__(self, env: TorchVectorEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self._over, self._begun = np.ones(env.num_envs, bool), False
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: Seed of the first environment, counted up for the others; one for each; or None.
            options: "reset_mask", True for environments to reset, (E,).

        Raises:
            ValueError: There are other options, or the number of seeds is another one.
        """
        others = sorted((options or {}).keys() - {"reset_mask"})
        if others:
            raise ValueError(f"options has {', '.join(others)}, expected reset_mask alone: environments on a device")
        seeds: list[int] | None = None
        if seed is not None:
            given = seeds_for(self.num_envs, seed)
            if None in given:
                raise ValueError(f"seed is {seed}, expected a number, or one for each of {self.num_envs} environments")
            seeds = [one for one in given if one is not None]
        chosen = np.ones(self.num_envs, bool)
        if options:
            masked(self.num_envs, options)  # raises for anything but a mask
            chosen = options["reset_mask"]
        if not (self._begun or chosen.all()):
            raise gym.error.ResetNeeded("the first reset has a reset_mask, expected one of all environments")
        mask = None if chosen.all() else torch.as_tensor(chosen, device=self.env.device)
        (obs,) = to_host(self.env.reset(mask, seeds=seeds))
        self._over[chosen], self._begun = False, True
        return self._parts(obs), {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take a step in all environments.

        Args:
            actions: An element of the action space.

        Raises:
            ResetNeeded: An episode is over.
            ValueError: Actions are of another shape, or not finite.
        """
        if self._over.any():
            ids = np.flatnonzero(self._over).tolist()
            raise gym.error.ResetNeeded(f"environments {ids} have no episode, expected a reset")
        array = np.asarray(actions)
        if array.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {array.shape}, expected {self.action_space.shape}")
        if not np.isfinite(array).all():
            raise ValueError("actions are not finite")
        (there,) = to_device([array.reshape(self.num_envs, -1)], self.env.device)
        obs, reward, terminated, truncated, *success = to_host(*(x for x in self.env.step(there) if x is not None))
        self._over = np.logical_or(terminated, truncated)
        info = {"is_success": success[0], "_is_success": np.ones(self.num_envs, bool)} if success else {}
        return self._parts(obs), reward.astype(np.float64), terminated, truncated, info

    def _parts(self, obs: NDArray[np.float32]) -> Any:
        """Flat observations (E, O) in the form of the space."""
        space = self.single_observation_space
        if not isinstance(space, spaces.Dict):
            return obs
        widths = [spaces.flatdim(part) for part in space.values()]
        return dict(zip(space.keys(), np.split(obs, np.cumsum(widths)[:-1], axis=1), strict=True))
