"""Environments of a JAX simulator, such as Brax or MuJoCo Playground, which share their memory with torch by DLPack."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from layeredrl.checks import require_count
from layeredrl.environments.torch_vector import TorchStep
from layeredrl.randomness import generator_state, restore_generator

N_INITIAL = 1024
"""Smallest number of initial states that resets without seeds choose from."""


class JaxVector:
    """A `TorchVectorEnv` of environments in JAX.

    A single environment has `reset(key) -> state` and `step(state, action) -> state`, where a state is a pytree with
    `obs`, `reward` and `done`: those of Brax and MuJoCo Playground, without their wrappers. This class vectorises it,
    compiles it, and truncates its episodes.

    Resets without seeds choose among initial states that were drawn at the first reset, at least `N_INITIAL` of them: a
    reset takes as long as many steps. (Brax's own `AutoResetWrapper` gives each environment its first state again.)

    Args:
        env: The single environment, with `observation_size` and `action_size`.
        num_envs: Number of environments E.
        device: Their device; JAX has to have it as its default.
        max_episode_steps: Steps after which an episode is truncated.
        observation: Name of the observation, where the environment has several by name.
        seed: Seed of resets without seeds.

    Raises:
        ImportError: JAX is not installed: the extra `[brax]`.
    """

    def __init__(
        self,
        env: Any,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        max_episode_steps: int = 1000,
        observation: str = "state",
        seed: int = 0,
    ) -> None:
        require_count("num_envs", num_envs)
        require_count("max_episode_steps", max_episode_steps)
        self._jax = jax = _jax()
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), max_episode_steps
        self._observation = observation
        size = env.observation_size
        shape = size[observation] if isinstance(size, Mapping) else size
        width = int(np.prod(shape))
        self.single_observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.single_action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (int(env.action_size),), np.float32)
        self._n_steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._state: Any = None
        self._initial: Any = None
        self._seeded = jax.jit(jax.vmap(lambda number: env.reset(jax.random.PRNGKey(number))))
        self._stepped = jax.jit(jax.vmap(env.step))
        self._chosen = jax.jit(self._choose)

    def _choose(self, over: Any, places: Any, initial: Any, state: Any) -> Any:
        """The state, with initial ones at some places (E,) where `over` (E,) is True."""
        where = self._jax.numpy.where

        def one(first: Any, now: Any) -> Any:
            return where(over.reshape(over.shape + (1,) * (now.ndim - 1)), first[places], now)

        return self._jax.tree.map(one, initial, state)

    def reset(self, mask: Tensor | None = None, *, seeds: Sequence[int] | None = None) -> Tensor:
        """Begin episodes; see `TorchVectorEnv`."""
        if self._state is None and mask is not None:
            raise ValueError("the first reset has a mask, expected one of all environments")
        n = max(N_INITIAL, self.num_envs)
        if seeds is not None and mask is None:
            self._generator.manual_seed(seeds[0])  # else all runs would choose the same later episodes
        if self._initial is None or (seeds is not None and mask is None):
            self._initial = self._drawn(torch.randint(2**31, (n,), generator=self._generator, device=self.device))
        if seeds is None:
            fresh = self._initial
            places = torch.randint(n, (self.num_envs,), generator=self._generator, device=self.device)
        else:
            fresh, places = self._drawn(torch.tensor(seeds)), torch.arange(self.num_envs, device=self.device)
        over = torch.ones_like(self._n_steps, dtype=torch.bool) if mask is None else mask
        now = self._jax.tree.map(lambda x: x[: self.num_envs], fresh) if self._state is None else self._state
        self._state = self._chosen(self._there(over), self._there(places), fresh, now)
        self._n_steps = self._n_steps.masked_fill(over, 0)
        return self._seen()

    def _drawn(self, numbers: Tensor) -> Any:
        """Initial states of the seeds (n,)."""
        return self._seeded(self._there(numbers.to(self.device, torch.int32)))

    def step(self, actions: Tensor) -> TorchStep:
        """Take a step in all environments; see `TorchVectorEnv`."""
        self._state = self._stepped(self._state, self._there(actions))
        self._n_steps = self._n_steps + 1
        reward, done = self._here(self._state.reward), self._here(self._state.done)
        return TorchStep(self._seen(), reward, done > 0.5, self._n_steps >= self.max_episode_steps)

    def _seen(self) -> Tensor:
        obs = self._state.obs
        obs = obs[self._observation] if isinstance(obs, Mapping) else obs
        return self._here(obs).float().reshape(self.num_envs, -1)

    def _here(self, array: Any) -> Tensor:
        """An array of JAX as a tensor in the same memory."""
        return torch.utils.dlpack.from_dlpack(array)

    def _there(self, tensor: Tensor) -> Any:
        """A tensor as an array of JAX in the same memory."""
        return self._jax.dlpack.from_dlpack(tensor.contiguous())

    def state_dict(self) -> dict[str, Any]:
        """States, initial ones and steps; see `TorchVectorEnv`."""
        leaves = [self._jax.tree.leaves(x) for x in (self._state, self._initial)]
        return {
            "state": [self._here(x).clone() for x in leaves[0]],
            "initial": [self._here(x).clone() for x in leaves[1]],
            "n_steps": self._n_steps.clone(),
            **generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, after a reset of all environments, which gives the states their form."""
        for name in ("state", "initial"):
            form = self._jax.tree.structure(getattr(self, f"_{name}"))
            leaves = [self._there(x.to(self.device)) for x in state[name]]
            setattr(self, f"_{name}", self._jax.tree.unflatten(form, leaves))
        self._n_steps = state["n_steps"].to(self.device)
        restore_generator(self._generator, state)


def _jax() -> Any:
    """The module, which is imported only here."""
    try:
        import jax
        import jax.dlpack
    except ImportError as error:
        raise ImportError("environments in JAX need it installed: pip install 'layeredrl[brax]'") from error
    return jax
