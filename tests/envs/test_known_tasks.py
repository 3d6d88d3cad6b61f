"""Promises of all registered tasks: torch functions on `env.unwrapped` that agree with the environment."""

import importlib.util
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

import envs  # noqa: F401  registers the tasks
from layeredrl.environments import make_env, make_task
from layeredrl.world_model import Encoder, Oracle

NO_MUJOCO = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the extra mujoco")
CHEETAH = pytest.param("FullStateHalfCheetah-v0", 18, None, marks=NO_MUJOCO)
# id, width of the state, options of the reset for varied starts
TASKS = [
    pytest.param("ContinuousCartPole-v0", 4, {"low": -0.2, "high": 0.2}),
    pytest.param("DiscreteCartPole-v0", 4, {"low": -0.2, "high": 0.2}),
    pytest.param("CartPoleSwingUp-v0", 5, {"low": -2.0, "high": 2.0}),
    pytest.param("SwingUpPendulum-v0", 3, {"x_init": np.pi, "y_init": 8.0}),
    CHEETAH,
]
NO_ROBOTICS = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="needs the extra robotics"
)
# Tasks with a goal, whose observations are a Dict: id, width of the state
GOAL_TASKS = [
    pytest.param("Maze2D-Simple-v0", 4),
    pytest.param("Maze2D-Corridor-v0", 4),
    pytest.param("Maze2D-Medium-v0", 4),
    pytest.param("AntGoal-v0", 29, marks=NO_MUJOCO),
    pytest.param("PointMaze-UMaze-v0", 6, marks=NO_ROBOTICS),
    pytest.param("PointMaze-Medium-v0", 6, marks=NO_ROBOTICS),
    pytest.param("AntMaze-UMaze-v0", 107, marks=NO_ROBOTICS),
    pytest.param("AntMaze-Medium-v0", 107, marks=NO_ROBOTICS),
]
LIMITS = {
    "ContinuousCartPole-v0": 200,
    "DiscreteCartPole-v0": 500,
    "CartPoleSwingUp-v0": 200,
    "SwingUpPendulum-v0": 200,
    "FullStateHalfCheetah-v0": 1000,
    "Maze2D-Simple-v0": None,  # they truncate by themselves
    "Maze2D-Corridor-v0": None,
    "Maze2D-Medium-v0": None,
    "AntGoal-v0": 200,
    "PointMaze-UMaze-v0": 300,
    "PointMaze-Medium-v0": 600,
    "AntMaze-UMaze-v0": 700,
    "AntMaze-Medium-v0": 1000,
}


def collect(env_id: str, options: dict[str, Any] | None, n_steps: int = 200) -> tuple[Any, list[Tensor]]:
    """The unwrapped environment, and states, actions, next states, rewards, terminations of random actions."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0, options=options)
    rows = []
    for i in range(n_steps):
        action = env.action_space.sample()
        next_obs, reward, terminated, _, _ = env.step(action)
        rows.append((obs.astype(np.float32), np.atleast_1d(action), next_obs.astype(np.float32), reward, terminated))
        obs = env.reset(options=options)[0] if terminated or i % 40 == 39 else next_obs
    return env.unwrapped, [torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("env_id", "width", "options"), TASKS)
def test_functions_follow_the_environment_step_by_step(env_id: str, width: int, options: dict[str, Any] | None) -> None:
    known, (states, actions, next_states, rewards, terminations) = collect(env_id, options)
    context = torch.zeros(len(states), 0)
    found = known.dynamics_function(states, context, actions)
    assert found.dtype == torch.float32
    # MuJoCo's contacts are stiff: rounding the state to float32 grows there.
    atol = 2e-3 if width == 18 else 2e-6
    torch.testing.assert_close(found, next_states, rtol=1e-5, atol=atol)
    assert (found - next_states).abs().median() < 1e-6
    reward = known.reward_function(states, context, actions, next_states)
    torch.testing.assert_close(reward, rewards.float(), rtol=1e-5, atol=2e-4 if width == 18 else 2e-6)
    if hasattr(known, "termination_function"):
        terminated = known.termination_function(states, context, actions, next_states)
        assert terminated.dtype == torch.bool
        assert torch.equal(terminated, terminations)
        assert terminations.any()
    else:
        assert not terminations.any()


@pytest.mark.parametrize(("env_id", "width", "options"), TASKS)
def test_functions_take_any_batch_dims_and_refuse_to_broadcast(
    env_id: str, width: int, options: dict[str, Any] | None
) -> None:
    known, (states, actions, next_states, *_) = collect(env_id, options, 12)
    assert states.shape[1] == width
    flat = known.dynamics_function(states, None, actions)
    for leading in [(), (0,), (12,), (2, 6), (2, 1, 6)]:
        n = int(np.prod(leading))
        state, action, after = (x[:n].reshape(*leading, x.shape[1]) for x in (states, actions, next_states))
        found = known.dynamics_function(state, None, action)
        torch.testing.assert_close(found, flat[:n].reshape(*leading, width))
        assert known.reward_function(state, None, action, after).shape == leading
        if hasattr(known, "termination_function"):
            assert known.termination_function(state, None, action, after).shape == leading
    with pytest.raises(ValueError, match=rf"\(2, 1, {width}\) and \(2, 3, {actions.shape[1]}\)"):
        known.dynamics_function(states[:2, None], None, actions[:6].reshape(2, 3, -1))
    with pytest.raises(ValueError, match=rf"\(12, {width - 1}\)"):
        known.dynamics_function(states[:, 1:], None, actions)


@pytest.mark.parametrize(("env_id", "width", "options"), TASKS)
def test_an_oracle_of_the_task_follows_the_environment(env_id: str, width: int, options: dict[str, Any] | None) -> None:
    task, env = make_task(env_id), make_env(env_id)
    encoder = Encoder(task)
    oracle = Oracle.from_task(task, encoder)
    obs, _ = env.reset(seed=1)
    state = torch.as_tensor(obs, dtype=torch.float32)[None]
    env.action_space.seed(1)
    actions, expected = [], [obs]
    for _ in range(8):
        actions.append(np.atleast_1d(env.action_space.sample()))
        expected.append(env.step(actions[-1] if actions[-1].dtype == np.float32 else actions[-1].item())[0])
    rollout = oracle.rollout(state, state[:, :0], torch.from_numpy(np.array(actions))[None])
    found = rollout.state[0, 0, 0].numpy()
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-4, atol=2e-3 if width == 18 else 1e-5)
    assert not rollout.diverged.any()


@pytest.mark.parametrize(("env_id", "width"), GOAL_TASKS)
def test_functions_of_tasks_with_a_goal_follow_the_environment(env_id: str, width: int) -> None:
    task, env = make_task(env_id), make_env(env_id)
    encoder = Encoder(task)
    assert encoder.state_dim == width
    assert task.reward is not None
    assert task.termination is not None

    def encoded(obs: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        assert list(obs) == list(task.slices)
        state, context = encoder(torch.from_numpy(task.flatten({key: part[None] for key, part in obs.items()})))
        torch.testing.assert_close(state[0, :2], torch.from_numpy(obs["achieved_goal"]))
        torch.testing.assert_close(context[0], torch.from_numpy(obs["desired_goal"]))
        return state, context

    env.action_space.seed(0)
    obs, info = env.reset(seed=0)
    for _ in range(30):
        state, context = encoded(obs)
        action = env.action_space.sample()
        obs, reward, terminated, _, info = env.step(action)
        next_state, _ = encoded(obs)
        transition = state, context, torch.from_numpy(action)[None], next_state
        found = task.reward(*transition)
        torch.testing.assert_close(found, torch.tensor([reward], dtype=torch.float32), rtol=1e-5, atol=1e-6)
        assert task.termination(*transition).tolist() == [terminated] == [False]
        assert {"success", "is_success"} & info.keys()
    for leading in [(), (0,), (2, 3)]:
        batched = [part[0].expand(*leading, part.shape[1]) for part in transition]
        torch.testing.assert_close(task.reward(*batched), found[0].expand(leading))
        assert task.termination(*batched).shape == leading
        assert task.termination(*batched).dtype == torch.bool


@pytest.mark.parametrize("env_id", [pytest.param(task.values[0], marks=task.marks) for task in [*TASKS, *GOAL_TASKS]])
def test_passes_gymnasiums_checks(env_id: str) -> None:
    assert gym.spec(env_id).max_episode_steps == LIMITS[env_id]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)
    # Unbounded velocities, and Pendulum-v1's torque: gymnasium's own environments get the same warnings.
    unexpected = [m for m in (str(w.message) for w in caught) if "infinity" not in m and "symmetric" not in m]
    assert not unexpected


@pytest.mark.parametrize(
    ("env_id", "extra"),
    [
        ("AntGoal-v0", "mujoco"),
        ("PETSCartpole-v0", "mujoco"),
        ("PETSHalfCheetah-v0", "mujoco"),
        ("PETSPusher-v0", "mujoco"),
        ("PETSReacher-v0", "mujoco"),
        ("PointMaze-UMaze-v0", "robotics"),
        ("AntMaze-Medium-v0", "robotics"),
    ],
)
def test_a_missing_extra_is_named(env_id: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mujoco", "gymnasium_robotics"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for name in (
        "ant",
        "pets_task",
        "pets_cartpole",
        "pets_half_cheetah",
        "pets_pusher",
        "pets_reacher",
        "robotics_mazes",
    ):
        monkeypatch.delitem(sys.modules, f"envs.{name}", raising=False)
    with pytest.raises(gym.error.DependencyNotInstalled, match=f"extra {extra}"):
        gym.make(env_id)
