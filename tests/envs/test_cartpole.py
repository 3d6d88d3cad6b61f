"""The cart-pole against gymnasium's. Its torch functions are tested in test_known_tasks."""

import importlib
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.typing import NDArray

import envs
from envs.cartpole import (
    THETA_LIMIT,
    X_LIMIT,
    ContinuousCartPole,
    termination_function,
)

Array = NDArray[np.float32]
Env = gym.Env[Array, Array]
ENV_ID = "ContinuousCartPole-v0"


@pytest.fixture
def cartpole() -> ContinuousCartPole:
    return ContinuousCartPole(render_mode="rgb_array")


def _action(value: float) -> Array:
    return np.array([value], dtype=np.float32)


def _balancing(obs: Array) -> Array:
    """Linear feedback that keeps the pole up."""
    push = obs @ np.array([0.1, 0.3, 3.0, 1.0], dtype=np.float32)
    return _action(float(np.clip(push, -1.0, 1.0)))


def test_registration_can_be_repeated() -> None:
    spec = gym.spec(ENV_ID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(envs)
    assert gym.spec(ENV_ID) is spec
    assert spec.max_episode_steps == 200


@pytest.mark.parametrize("seed", range(2))
def test_full_force_is_cartpole_v1(seed: int) -> None:
    ours, theirs = gym.make(ENV_ID), gym.make("CartPole-v1")
    assert isinstance(ours.observation_space, gym.spaces.Box)
    assert isinstance(theirs.observation_space, gym.spaces.Box)
    np.testing.assert_array_equal(ours.observation_space.low, theirs.observation_space.low)
    np.testing.assert_array_equal(ours.observation_space.high, theirs.observation_space.high)
    rng = np.random.default_rng(seed)
    n_terminated = 0
    np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    for _ in range(200):
        push = int(rng.integers(2))
        obs, reward, terminated, truncated, _ = ours.step(_action(2.0 * push - 1.0))
        expected_obs, expected_reward, expected_terminated, _, _ = theirs.step(push)
        np.testing.assert_array_equal(obs, expected_obs)
        assert reward == expected_reward == 1.0
        assert terminated == expected_terminated
        assert not truncated
        if terminated:
            n_terminated += 1
            np.testing.assert_array_equal(ours.reset()[0], theirs.reset()[0])
    assert n_terminated > 2


def test_leaving_the_track_terminates_as_in_cartpole_v1() -> None:
    ours, theirs = ContinuousCartPole(), CartPoleEnv()
    ours.reset(seed=0, options={"low": 0.0, "high": 0.0})
    theirs.reset(seed=0)
    for x in (2.39, -2.39):
        ours._state = np.array([x, 1.0 * np.sign(x), 0.0, 0.0])
        theirs.state = ours._state.copy()
        push = int(x > 0)
        obs, _, terminated, _, _ = ours.step(_action(2.0 * push - 1.0))
        expected_obs, _, expected_terminated, _, _ = theirs.step(push)  # type: ignore[no-untyped-call]
        np.testing.assert_array_equal(obs, expected_obs)
        assert terminated
        assert expected_terminated
        ours.reset()
        theirs.reset()


def test_termination_depends_on_the_next_state_alone() -> None:
    inside = torch.tensor([X_LIMIT - 0.01, 9.0, THETA_LIMIT - 0.001, 9.0])
    outside = torch.tensor([X_LIMIT + 0.01, 0.0, 0.0, 0.0])
    tilted = torch.tensor([0.0, 0.0, -THETA_LIMIT - 0.001, 0.0])
    next_states = torch.stack((inside, -inside, outside, -outside, tilted, -tilted))
    found = termination_function(outside.expand(6, 4), None, torch.zeros(6, 1), next_states)
    assert found.tolist() == [False, False, True, True, True, True]
    assert math.isclose(math.degrees(THETA_LIMIT), 12.0)


def test_truncates_at_exactly_200() -> None:
    env = gym.make(ENV_ID)
    obs, _ = env.reset(seed=0)
    ends = []
    for _ in range(200):
        obs, _, terminated, truncated, _ = env.step(_balancing(obs))
        assert not terminated
        ends.append(truncated)
    assert ends == [False] * 199 + [True]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (_action(1.5), r"action is 1\.5; it should be a finite number in \[-1, 1\]"),
        (_action(-1.001), "action is -1.00"),
        (_action(np.nan), "action is nan"),
        (_action(np.inf), "action is inf"),
        (np.zeros(2, dtype=np.float32), r"action has shape \(2,\); it should be \(1,\)"),
        (np.zeros((1, 1), dtype=np.float32), r"action has shape \(1, 1\)"),
        (np.float32(0.5), r"action has shape \(\)"),
    ],
)
def test_bad_actions_are_refused(cartpole: ContinuousCartPole, action: Array, message: str) -> None:
    start, _ = cartpole.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        cartpole.step(action)
    assert cartpole._state is not None
    np.testing.assert_array_equal(cartpole._state.astype(np.float32), start)  # the state did not change


def test_misuse_raises_or_warns(cartpole: ContinuousCartPole) -> None:
    with pytest.raises(gym.error.ResetNeeded, match="step was called before reset"):
        cartpole.step(_action(0.0))
    with pytest.raises(gym.error.ResetNeeded, match="render was called before reset"):
        cartpole.render()
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        ContinuousCartPole(render_mode="human")
    silent = ContinuousCartPole()
    silent.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert silent.render() is None
    silent._state = np.array([3.0, 0.0, 0.0, 0.0])
    assert silent.step(_action(0.0))[2]
    with pytest.warns(UserWarning, match="after the episode terminated"):
        silent.step(_action(0.0))


def test_frames_show_state_action_and_step(cartpole: ContinuousCartPole) -> None:
    cartpole.reset(seed=0)
    frame = cartpole.render()
    assert frame is not None
    assert frame.shape == (300, 480, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, cartpole.render())
    assert cartpole._drawing is not None
    draw = cartpole._drawing.frame
    still = draw(np.zeros(4), 0.0, 0)
    assert not np.array_equal(still, draw(np.array([0.5, 0.0, 0.0, 0.0]), 0.0, 0))
    assert not np.array_equal(still, draw(np.array([0.0, 0.0, 0.1, 0.0]), 0.0, 0))
    assert not np.array_equal(still, draw(np.zeros(4), 1.0, 0))
    assert not np.array_equal(still, draw(np.zeros(4), 0.0, 7))
    np.testing.assert_array_equal(still, draw(np.zeros(4), 0.0, 0))  # the background did not change


@pytest.mark.parametrize("action", [-1.0, 0.01])
def test_frames_at_the_ends_of_the_track(cartpole: ContinuousCartPole, action: float) -> None:
    cartpole.reset(seed=0)
    for x in (-X_LIMIT, X_LIMIT):
        cartpole._state = np.array([x, 0.0, 0.2, 0.0])
        cartpole.step(_action(action))
        frame = cartpole.render()
        assert frame is not None
        assert frame.shape == (300, 480, 3)
