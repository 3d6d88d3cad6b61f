"""Physics and pictures of the swing-up. Its functions are tested in test_known_tasks."""

import math
import pickle

import numpy as np
import pytest
import torch

from envs.cartpole import GRAVITY, HALF_LENGTH, POLE_MASS, TOTAL_MASS, X_LIMIT
from envs.cartpole_swingup import CartPoleSwingUp, dynamics_function, reward_function, termination_function

HANGING = torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0])


def test_starts_hanging_at_rest_in_the_centre() -> None:
    env = CartPoleSwingUp()
    starts = torch.tensor(np.array([env.reset(seed=seed)[0] for seed in range(50)]))
    torch.testing.assert_close(starts, HANGING.expand(50, 5), atol=0.0501, rtol=0)
    assert starts.std(0).gt(1e-4).all()


def test_no_force_keeps_the_energy() -> None:
    env = CartPoleSwingUp()
    env.reset(seed=0, options={"low": -0.6, "high": 0.6})

    def energy() -> float:
        assert env._state is not None
        _, x_dot, theta, theta_dot = env._state
        moving = TOTAL_MASS * x_dot**2 / 2 + POLE_MASS * HALF_LENGTH * x_dot * theta_dot * math.cos(theta)
        turning = 2 / 3 * POLE_MASS * HALF_LENGTH**2 * theta_dot**2
        return moving + turning + POLE_MASS * GRAVITY * HALF_LENGTH * math.cos(theta)

    scale = POLE_MASS * GRAVITY * HALF_LENGTH  # energy of raising the pole from horizontal
    start, energies = energy(), []
    for _ in range(200):
        env.step(np.zeros(1, np.float32))
        energies.append(energy())
    # With symplectic steps the energy oscillates but does not grow.
    assert abs(np.mean(energies[:50]) - start) < 0.1 * scale
    assert abs(np.mean(energies[-50:]) - start) < 0.1 * scale


@pytest.mark.parametrize(("n_reversals", "up"), [(0, False), (1, False), (2, False), (3, True)])
def test_several_swings_are_needed_and_the_track_is_long_enough(n_reversals: int, up: bool) -> None:
    n = 3000
    generator = torch.Generator().manual_seed(0)
    when = 100 * torch.rand(n, n_reversals, generator=generator)
    state, inside, highest = HANGING.expand(n, 5), torch.ones(n, dtype=torch.bool), torch.full((n,), -1.0)
    for t in range(100):
        push = 1.0 - 2.0 * ((when <= t).sum(1, keepdim=True) % 2)
        state = dynamics_function(state, None, push)
        inside &= ~termination_function(state, None, push, state)
        highest = torch.where(inside, highest.maximum(state[:, 2]), highest)
    assert bool(highest.max() > 0.95) == up


def test_reward_is_one_at_the_goal_and_zero_at_the_bottom() -> None:
    upright = torch.tensor([0.0, 3.0, 1.0, 0.0, -2.0])
    off_centre = upright + torch.tensor([X_LIMIT, 0, 0, 0, 0])
    states = torch.stack([upright, off_centre, HANGING, torch.tensor([0.0, 0, 0, 1, 0])])
    found = reward_function(states, None, states[:, :1], states)
    torch.testing.assert_close(found, torch.tensor([1.0, math.exp(-1), 0.0, 0.5]))


def test_only_the_end_of_the_track_terminates() -> None:
    env = CartPoleSwingUp()
    env.reset(seed=0)
    for theta in (0.0, 1.0, 3.0, 40.0):
        env._state = np.array([0.0, 0.0, theta, 0.0])
        assert not env.step(np.zeros(1, np.float32))[2]
    env._state = np.array([2.39, 1.0, 0.0, 0.0])
    assert env.step(np.ones(1, np.float32))[2]


def test_frames_and_copies() -> None:
    env = CartPoleSwingUp(render_mode="rgb_array")
    env.reset(seed=0)
    hanging = env.render()
    assert hanging is not None
    assert hanging.shape == (300, 480, 3)
    env._state = np.zeros(4)
    upright = env.render()
    assert upright is not None
    assert not np.array_equal(hanging, upright)
    env._state = np.array([0.0, 0.0, 2 * math.pi, 0.0])  # turned once
    np.testing.assert_array_equal(env.render(), upright)
    copy = pickle.loads(pickle.dumps(env))
    action = np.array([0.4], np.float32)
    np.testing.assert_array_equal(copy.step(action)[0], env.step(action)[0])
