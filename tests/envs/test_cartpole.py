"""The cart-pole against gymnasium's, and the torch functions against the cart-pole."""

import importlib
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import envs
from envs.cartpole import (
    THETA_LIMIT,
    X_LIMIT,
    ContinuousCartPole,
    dynamics_function,
    reward_function,
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
    """A hand-made feedback law that keeps the pole up."""
    push = obs @ np.array([0.1, 0.3, 3.0, 1.0], dtype=np.float32)
    return _action(float(np.clip(push, -1.0, 1.0)))


def test_passes_gymnasiums_checks() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(ENV_ID).unwrapped)
    # The velocities are unbounded, as in CartPole-v1, which gets the same two remarks.
    unexpected = [str(w.message) for w in caught if "infinity" not in str(w.message)]
    assert not unexpected


def test_registration_can_be_repeated() -> None:
    spec = gym.spec(ENV_ID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(envs)
    assert gym.spec(ENV_ID) is spec
    assert spec.max_episode_steps == 200


def test_pillow_and_the_library_are_not_imported_with_the_environment() -> None:
    code = (
        "import sys, gymnasium, envs; env = gymnasium.make('ContinuousCartPole-v0'); env.reset(); "
        "assert not {'PIL', 'layeredrl', 'agents', 'pygame'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(envs.__file__).parents[1])


@pytest.mark.parametrize("seed", range(5))
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


@pytest.mark.parametrize("seed", range(2))
def test_torch_functions_follow_the_environment(seed: int) -> None:
    env = gym.make(ENV_ID)
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    transitions = []
    for _ in range(300):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        transitions.append((obs, action, next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    states, actions, next_states, rewards, terminations = (
        torch.from_numpy(np.array(column)) for column in zip(*transitions, strict=True)
    )
    assert terminations.any()
    torch.testing.assert_close(dynamics_function(states, None, actions), next_states, rtol=1e-5, atol=1e-6)
    known = env.unwrapped
    assert isinstance(known, ContinuousCartPole)
    torch.testing.assert_close(known.reward_function(states, None, actions, next_states), rewards.float())
    found = known.termination_function(states, None, actions, next_states)
    assert found.dtype == torch.bool
    assert torch.equal(found, terminations)


@pytest.mark.parametrize("leading", [(), (7,), (2, 3), (2, 1, 5), (0,)])
def test_torch_functions_take_any_batch_dims(leading: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(*leading, 4, generator=generator)
    action = torch.rand(*leading, 1, generator=generator) * 2 - 1
    context = torch.zeros(*leading, 0)
    next_state = dynamics_function(state, context, action)
    assert next_state.shape == (*leading, 4)
    flat = [dynamics_function(s, None, a) for s, a in zip(state.reshape(-1, 4), action.reshape(-1, 1), strict=True)]
    if flat:
        torch.testing.assert_close(next_state.reshape(-1, 4), torch.stack(flat))
    reward = reward_function(state, context, action, next_state)
    assert torch.equal(reward, torch.ones(leading))
    terminated = termination_function(state, context, action, next_state)
    assert terminated.shape == leading
    assert terminated.dtype == torch.bool


def test_dynamics_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 4\) and \(2, 3, 1\)"):
        dynamics_function(torch.zeros(2, 1, 4), None, torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        dynamics_function(torch.zeros(5, 3), None, torch.zeros(5, 1))


def test_termination_looks_at_the_next_state_alone() -> None:
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


def test_same_seed_same_episode() -> None:
    first, second = gym.make(ENV_ID), gym.make(ENV_ID)
    starts = {first.reset(seed=seed)[0].tobytes() for seed in range(10)}
    assert len(starts) == 10
    np.testing.assert_array_equal(first.reset(seed=3)[0], second.reset(seed=3)[0])
    for action in np.linspace(-0.5, 0.5, 10, dtype=np.float32):
        np.testing.assert_array_equal(first.step(_action(action))[0], second.step(_action(action))[0])
    np.testing.assert_array_equal(first.reset()[0], second.reset()[0])  # the generator goes on alike


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
    np.testing.assert_array_equal(cartpole._state.astype(np.float32), start)  # the refusal changed nothing


def test_misuse_is_named(cartpole: ContinuousCartPole) -> None:
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
    np.testing.assert_array_equal(still, draw(np.zeros(4), 0.0, 0))  # nothing was left on the background


@pytest.mark.parametrize("action", [-1.0, -0.01, 0.0, 0.01, 1.0])
def test_frames_at_the_ends_of_the_track(cartpole: ContinuousCartPole, action: float) -> None:
    cartpole.reset(seed=0)
    for x in (-X_LIMIT, X_LIMIT):
        cartpole._state = np.array([x, 0.0, 0.2, 0.0])
        cartpole.step(_action(action))
        frame = cartpole.render()
        assert frame is not None
        assert frame.shape == (300, 480, 3)


def test_survives_pickling(cartpole: ContinuousCartPole) -> None:
    start, _ = cartpole.reset(seed=1)
    cartpole.render()
    copy = pickle.loads(pickle.dumps(cartpole))
    np.testing.assert_array_equal(copy.step(_action(0.3))[0], cartpole.step(_action(0.3))[0])
    np.testing.assert_array_equal(copy.reset(seed=1)[0], start)


def _rescaled(env: Env) -> gym.wrappers.RescaleAction[Array, Array, Array]:
    return gym.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))


def test_runs_in_a_vector_environment() -> None:
    vector_env = gym.make_vec(ENV_ID, num_envs=3, vectorization_mode="sync", wrappers=[_rescaled])
    obs, _ = vector_env.reset(seed=0)
    assert obs.shape == (3, 4)
    obs, reward, *_ = vector_env.step(np.array([[-1.0], [0.0], [1.0]], dtype=np.float32))
    assert obs.shape == (3, 4)
    assert reward.tolist() == [1.0, 1.0, 1.0]
