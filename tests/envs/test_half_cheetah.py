"""The simulator against the environment. Promises of all tasks are tested in test_known_tasks."""

import copy
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("mujoco")

import envs  # noqa: F401  registers the tasks
from envs.half_cheetah import Simulator, dynamics_function, simulate
from layeredrl.environments import make_task
from layeredrl.world_model import Encoder, Oracle


def trajectory(seed: int, n_steps: int = 30) -> tuple[Tensor, Tensor]:
    """States (H+1, 18), float64, and random actions (H, 6) of the environment."""
    env = gym.make("FullStateHalfCheetah-v0")
    env.action_space.seed(seed)
    states, actions = [env.reset(seed=seed)[0]], []
    for _ in range(n_steps):
        actions.append(env.action_space.sample())
        states.append(env.step(actions[-1])[0])
    return torch.from_numpy(np.array(states)), torch.from_numpy(np.array(actions))


def test_trajectories_are_exact_but_for_rounding_the_start() -> None:
    rows = [trajectory(seed) for seed in range(4)]
    states, actions = (torch.stack(column) for column in zip(*rows, strict=True))
    exact = simulate(states[:, 0], None, actions)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, states, rtol=1e-9, atol=1e-9)
    rounded = simulate(states[:, 0].float(), None, actions)
    assert rounded.dtype == torch.float32
    error = (rounded - states).abs().amax(-1)
    assert error[:, :4].max() < 5e-6
    assert error.max() < 0.05  # contacts make it grow


def test_threads_and_copies_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(7, 18, generator=generator) * 0.1
    actions = torch.rand(7, 5, 6, generator=generator) * 2 - 1
    one, three = Simulator(1), Simulator(3)
    expected = one(state, None, actions)
    assert expected.shape == (7, 6, 18)
    assert torch.equal(expected[:, 0], state)
    for other in (three, pickle.loads(pickle.dumps(three)), copy.deepcopy(one), simulate):
        assert torch.equal(other(state, None, actions), expected)
    assert torch.equal(one(state, None, actions), expected)  # no state is left over
    assert one(state[:0], None, actions[:0]).shape == (0, 6, 18)
    assert one(state, None, actions[:, :0]).shape == (7, 1, 18)
    torch.testing.assert_close(dynamics_function(state, None, actions[:, 0]), expected[:, 1])


def test_an_oracle_that_simulates_whole_sequences() -> None:
    states, actions = trajectory(0, 10)
    task = make_task("FullStateHalfCheetah-v0")
    oracle = Oracle.from_task(task, Encoder(task), simulate)
    found = oracle.rollout(states[:1].float(), states[:1, :0].float(), actions[None])
    torch.testing.assert_close(found.state[0, 0, 0], states.float(), rtol=1e-4, atol=1e-4)
    assert not found.term_prob.any()


def test_failed_simulations_are_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file
    state, actions = torch.zeros(4, 18), torch.zeros(4, 5, 6)
    state[1, 12], state[2, 3], actions[3, 2, 0] = 1e12, torch.nan, torch.nan
    found = simulate(state, None, actions).isnan().any(-1).int()
    assert found.tolist() == [[0] * 6, [0, 1, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1]]


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 17\) and \(2, 5, 6\)"):
        simulate(torch.zeros(2, 17), None, torch.zeros(2, 5, 6))
    with pytest.raises(ValueError, match=r"\(2, 18\) and \(3, 5, 6\)"):
        simulate(torch.zeros(2, 18), None, torch.zeros(3, 5, 6))
    with pytest.raises(ValueError, match="n_threads is 0"):
        Simulator(0)
