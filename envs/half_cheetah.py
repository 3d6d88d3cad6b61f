"""gymnasium's HalfCheetah-v5 with its whole state observed, and a batched simulation of it in MuJoCo.

Needs the extra `mujoco`.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.mujoco_env import expand_model_path
from mujoco.rollout import Rollout
from torch import Tensor

from envs.shapes import check_shapes

N_STATES, N_ACTIONS = 18, 6
FRAME_SKIP = 5
"""Steps of MuJoCo per step of the environment."""
TAU = 0.05
"""Seconds per step of the environment."""
CONTROL_COST = 0.1


class Simulator:
    """Simulates action sequences of HalfCheetah in MuJoCo, all rows in parallel.

    A trajectory from a reset equals the environment's to the last bit. From a float32 observation it deviates by the
    rounding, about 1e-7 at first, which contacts amplify: up to 5e-3 after 30 random steps. The initial guess of
    MuJoCo's solver, which is not part of the observation, changes states by 1e-13.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        """Load the robot and start the threads.

        Args:
            n_threads: Number of threads; None: as many as this process may use.
        """
        self.n_threads = _n_processors() if n_threads is None else n_threads
        if self.n_threads < 1:
            raise ValueError(f"n_threads is {n_threads}, expected at least 1")
        self._model = mujoco.MjModel.from_xml_path(expand_model_path("half_cheetah.xml"))
        self._data = [mujoco.MjData(self._model) for _ in range(self.n_threads)]
        self._pool = Rollout(nthread=self.n_threads if self.n_threads > 1 else 0)  # 0: on the calling thread

    def __reduce__(self) -> tuple[Any, ...]:
        return Simulator, (self.n_threads,)  # copies start threads of their own

    def __call__(self, state: Tensor, context: Tensor | None, actions: Tensor) -> Tensor:
        """Simulate action sequences.

        Args:
            state: The 9 positions and 9 velocities. Shape: (B, 18).
            context: Not used.
            actions: Torques in [-1, 1]; MuJoCo clips them. Shape: (B, H, 6).

        Returns:
            States, the given ones first; NaN from the step at which MuJoCo failed. Shape: (B, H+1, 18).
        """
        b, h = len(state), actions.shape[1]
        if state.shape != (b, N_STATES) or actions.shape != (b, h, N_ACTIONS):
            raise ValueError(
                f"state and actions have shapes {tuple(state.shape)} and {tuple(actions.shape)}; "
                f"they should be (B, {N_STATES}) and (B, H, {N_ACTIONS})"
            )
        if b == 0 or h == 0:
            return state.unsqueeze(1).expand(-1, h + 1, -1).clone()
        start = np.zeros((b, 1 + N_STATES))  # time, positions, velocities: mjSTATE_FULLPHYSICS of this robot
        start[:, 1:] = state.detach().cpu().numpy()
        controls = actions.detach().cpu().double().repeat_interleave(FRAME_SKIP, 1).numpy()
        found, _ = self._pool.rollout(self._model, self._data, start, controls)
        found = found[:, FRAME_SKIP - 1 :: FRAME_SKIP]
        # At a bad state MuJoCo resets itself, its time included.
        failed = np.abs(found[:, :, 0] - TAU * np.arange(1, h + 1)) > TAU / 10
        states = np.where(failed[:, :, None], np.nan, found[:, :, 1:])
        return torch.cat([state.unsqueeze(1), torch.from_numpy(states).to(state)], 1)


def _n_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _simulator() -> Simulator:
    return Simulator()


def simulate(state: Tensor, context: Tensor | None, actions: Tensor) -> Tensor:
    """Simulate action sequences with a shared `Simulator`.

    Args:
        state: The 9 positions and 9 velocities. Shape: (B, 18).
        context: Not used.
        actions: Torques in [-1, 1]. Shape: (B, H, 6).

    Returns:
        States, the given ones first. Shape: (B, H+1, 18).
    """
    return _simulator()(state, context, actions)


def dynamics_function(state: Tensor, context: Tensor | None, action: Tensor) -> Tensor:
    """One step of the true physics; for sequences `simulate` is faster and more exact.

    Args:
        state: The 9 positions and 9 velocities. Shape: (..., 18).
        context: Not used.
        action: In [-1, 1]. Shape: (..., 6), leading dims as in `state`.

    Returns:
        The next state. Shape: (..., 18).
    """
    check_shapes(state, action, N_STATES, N_ACTIONS)
    states = simulate(state.reshape(-1, N_STATES), context, action.reshape(-1, 1, N_ACTIONS))
    return states[:, 1].reshape(state.shape)


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """Forward velocity of the step in m/s, less 0.1 |action|².

    Args:
        state: State whose first entry is the robot's x, in metres. Shape: (..., 18).
        context: Not used.
        action: Shape: (..., 6).
        next_state: Shape: (..., 18).

    Returns:
        Shape: (...).
    """
    return (next_state[..., 0] - state[..., 0]) / TAU - CONTROL_COST * action.square().sum(-1)


class FullStateHalfCheetah(HalfCheetahEnv):
    """gymnasium's HalfCheetah-v5, observing all 9 positions, x included, and all 9 velocities. Never terminates."""

    dynamics_function = staticmethod(dynamics_function)
    reward_function = staticmethod(reward_function)

    def __init__(self, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            **kwargs: Arguments of gymnasium's class that concern rendering or the initial state.
        """
        super().__init__(exclude_current_positions_from_observation=False, **kwargs)
