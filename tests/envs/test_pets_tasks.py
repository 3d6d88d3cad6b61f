"""The four tasks of PETS against their description: timing, ranges, starts, observations, rewards."""

import copy
import os
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

pytest.importorskip("mujoco")

import envs  # noqa: F401  registers the tasks
from envs import pets_cartpole, pets_pusher, pets_reacher
from layeredrl.environments import make_task

CARTPOLE, REACHER, PUSHER, CHEETAH = IDS = [
    "PETSCartpole-v0",
    "PETSReacher-v0",
    "PETSPusher-v0",
    "PETSHalfCheetah-v0",
]
# id: substeps, seconds of a substep, steps of an episode, actions, largest action, observations
FACTS = {
    CARTPOLE: (2, 0.02, 200, 1, 3.0, 4),
    REACHER: (2, 0.01, 150, 7, 20.0, 17),
    PUSHER: (4, 0.01, 150, 7, 2.0, 20),
    CHEETAH: (5, 0.01, 1000, 6, 1.0, 18),
}


def starts(env_id: str, n: int = 400) -> np.ndarray:
    env = gym.make(env_id)
    env.reset(seed=0)
    return np.array([env.reset()[0] for _ in range(n)])


def transitions(env_id: str, n: int = 300) -> tuple[Any, list[Tensor]]:
    """The bare environment, and observations, actions, next observations and rewards of random actions, in float32."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    rows = []
    for _ in range(n):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        assert not terminated
        rows.append((obs, action, next_obs, reward))
        obs = env.reset()[0] if truncated else next_obs
    return env.unwrapped, [torch.from_numpy(np.array(column, np.float32)) for column in zip(*rows, strict=True)]


# ------------------------------------------------------------------ what all of them promise


@pytest.mark.parametrize("env_id", IDS)
def test_timing_and_ranges(env_id: str) -> None:
    n_substeps, substep, n_steps, n_actions, largest, n_observations = FACTS[env_id]
    env = gym.make(env_id)
    bare: Any = env.unwrapped
    assert bare.frame_skip == n_substeps
    assert bare.model.opt.timestep == substep
    assert bare.dt == pytest.approx(n_substeps * substep)
    assert env.spec is not None
    assert env.spec.max_episode_steps == n_steps
    assert env.action_space == gym.spaces.Box(-largest, largest, (n_actions,), np.float32)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (n_observations,), np.float64)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(n_steps)]
    assert ends == [(False, False)] * (n_steps - 1) + [(False, True)]


@pytest.mark.parametrize("env_id", IDS)
def test_the_torch_reward_equals_the_environments(env_id: str) -> None:
    known, (states, actions, next_states, rewards) = transitions(env_id)
    found = known.reward_function(states, None, actions, next_states)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, rewards, rtol=2e-6, atol=2e-6)
    assert not known.termination_function(states, None, actions, next_states).any()
    for leading in [(), (0,), (2, 3)]:
        n = int(np.prod(leading))
        state, action, after = (x[:n].reshape(*leading, x.shape[1]) for x in (states, actions, next_states))
        reward = known.reward_function(state, None, action, after)
        torch.testing.assert_close(reward, found[:n].reshape(leading))
        assert known.termination_function(state, None, action, after).shape == leading
    task = make_task(env_id)
    assert task.reward is known.reward_function
    assert task.termination is known.termination_function


@pytest.mark.parametrize("env_id", IDS)
def test_passes_gymnasiums_checks(env_id: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(env_id).unwrapped, skip_render_check=True)
    unexpected = [m for m in (str(w.message) for w in caught) if "infinity" not in m and "symmetric" not in m]
    assert not unexpected


@pytest.mark.parametrize("env_id", IDS)
def test_seed_and_actions_reproduce_an_episode(env_id: str) -> None:
    env = gym.make(env_id)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(60)]

    def play(env: Any) -> list[Any]:
        first = env.reset(seed=7)[0]
        return [first, *(x for action in actions for x in env.step(action)[:2])]

    expected = play(env)
    used, other = gym.make(env_id), gym.make(env_id).unwrapped
    used.reset(seed=3)
    for action in actions[::-1]:
        used.step(action)
    for again in (env, used, pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
        for a, b in zip(play(again), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("env_id", IDS)
def test_special_dimensions_of_the_state(env_id: str) -> None:
    dims = make_task(env_id).dims
    assert (dims.angle, dims.unseen, dims.absolute) == {CARTPOLE: ((1,), (), ()), CHEETAH: ((2,), (0,), (0,))}.get(
        env_id, ((), (), ())
    )
    assert dims.alike == (((14, 17), (15, 18), (16, 19)) if env_id == PUSHER else ())


@pytest.mark.parametrize("env_id", IDS[:3])
def test_bad_actions_are_named(env_id: str) -> None:
    env: Any = gym.make(env_id).unwrapped
    env.reset(seed=0)
    n = FACTS[env_id][3]
    with pytest.raises(ValueError, match=f"it should be {n} finite numbers"):
        env.step(np.full(n, np.nan, np.float32))
    with pytest.raises(ValueError, match="Action dimension mismatch"):
        env.step(np.zeros(n + 1, np.float32))


@pytest.mark.skipif(os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"), reason="needs MUJOCO_GL, to draw unseen")
@pytest.mark.parametrize("env_id", IDS)
def test_rendering(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    env.action_space.seed(0)
    first: Any = env.render()
    for _ in range(10):
        env.step(env.action_space.sample())
    later: Any = env.render()
    env.close()
    assert first.shape == later.shape == (48, 64, 3)
    assert first.std() > 5
    assert not np.array_equal(first, later)


# ------------------------------------------------------------------ cart-pole


def test_cartpole_starts_hanging() -> None:
    start = starts(CARTPOLE)
    np.testing.assert_allclose(start.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(start.std(0), 0.1, rtol=0.15)


def test_cartpole_reward() -> None:
    def reward(x: float, theta: float, action: float = 0.0) -> float:
        state = torch.tensor([x, theta, 5.0, -7.0])
        return float(pets_cartpole.reward_function(state * 0, None, torch.tensor([action]), state))

    assert reward(0, np.pi) == pytest.approx(1)
    assert reward(0, -np.pi, 3.0) == pytest.approx(1 - 0.09)
    assert reward(0, 0) == pytest.approx(np.exp(-4))
    assert 200 * reward(0, 0) == pytest.approx(3.7, abs=0.05)
    # The pole to the left, the tip at (x - 0.6, 0), 0.6 below the target.
    assert reward(0.6, np.pi / 2) == pytest.approx(np.exp(-1))
    assert reward(0.5, np.pi) == pytest.approx(np.exp(-0.25 / 0.36))


def test_cartpole_physics() -> None:
    env: Any = gym.make(CARTPOLE).unwrapped
    env.reset(seed=0)
    model = env.model
    assert model.opt.integrator == 1  # Runge-Kutta
    np.testing.assert_array_equal(model.actuator_gear[:, 0], [100.0])
    np.testing.assert_array_equal(model.jnt_range[0], [-2.5, 2.5])
    assert model.jnt_limited.tolist() == [1, 0]
    np.testing.assert_array_equal(model.dof_damping, [1.0, 1.0])
    assert model.geom("pole").size[0] == 0.049
    env.set_state(np.zeros(2), np.array([0.0, 30.0]))
    assert max(env.step(np.zeros(1))[0][1] for _ in range(25)) > np.pi  # it can turn around
    env.set_state(np.zeros(2), np.zeros(2))
    first, *_ = env.step(np.ones(1, np.float32))
    assert first[0] > 0  # pushed to the right
    assert first[1] > 0  # the tip stays behind


# ------------------------------------------------------------------ reacher


def test_reacher_starts_stretched_out_with_a_goal_of_each_episode() -> None:
    start = starts(REACHER)
    assert (start[:, :7] == 0).all()
    assert (start[:, 10:] == 0).all()
    np.testing.assert_allclose(start[:, 7:10].mean(0), pets_reacher.GOAL, atol=0.02)
    np.testing.assert_allclose(start[:, 7:10].std(0), 0.1, rtol=0.15)


def test_reacher_goal_stays_and_joints_move() -> None:
    _, (states, _, next_states, _) = transitions(REACHER, 100)
    assert torch.equal(states[:, 7:10], next_states[:1, 7:10].expand(100, 3))
    assert (next_states[:, :7] != states[:, :7]).all()


def test_reacher_tip() -> None:
    zero = torch.zeros(7, dtype=torch.float64)
    np.testing.assert_allclose(pets_reacher.tip_position(zero), [0.98928, -0.188, 0], atol=1e-12)
    up = zero.clone()
    up[1] = -np.pi / 2  # the shoulder lifts all but the first link
    np.testing.assert_allclose(pets_reacher.tip_position(up), [0.1, -0.188, 0.88928], atol=1e-12)
    left = zero.clone()
    left[0] = np.pi / 2
    np.testing.assert_allclose(pets_reacher.tip_position(left), [0, 0.80128, 0], atol=1e-12)
    env: Any = gym.make(REACHER).unwrapped
    env.reset(seed=0)
    low, high = env.model.jnt_range[:7].T
    for joints in np.random.default_rng(0).uniform(low, high, (20, 7)):
        env.set_state(np.concatenate([joints, pets_reacher.GOAL]), np.zeros(10))
        found = pets_reacher.tip_position(torch.from_numpy(joints))
        np.testing.assert_allclose(found, env.data.site("tip").xpos, atol=1e-12)
    np.testing.assert_allclose(env.data.body("goal").xpos, pets_reacher.GOAL, atol=1e-12)


def test_reacher_goals_are_within_reach() -> None:
    env: Any = gym.make(REACHER).unwrapped
    low, high = (torch.from_numpy(bound) for bound in env.model.jnt_range[:7].T)
    goals = torch.tensor(pets_reacher.GOAL) + 0.1 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    joints = torch.zeros(50, 7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([joints], lr=0.05)
    for _ in range(300):
        angles = low + (high - low) * joints.sigmoid()
        distance = (pets_reacher.tip_position(angles) - goals).square().sum(-1)
        optimizer.zero_grad()
        distance.sum().backward()
        optimizer.step()
    assert (distance.sqrt() < 0.05).float().mean() > 0.9


def test_reacher_reward() -> None:
    state = torch.zeros(17)
    state[7:10] = torch.tensor([0.98928, -0.188 + 0.3, 0.4])
    reward = pets_reacher.reward_function(state * 0, None, torch.tensor([2.0, 0, 0, 0, 0, 0, -1]), state)
    assert float(reward) == pytest.approx(-0.25 - 0.05)


# ------------------------------------------------------------------ pusher


def test_pusher_starts_with_the_object_near_the_base() -> None:
    start = starts(PUSHER)
    assert (start[:, :7] == 0).all()
    assert np.abs(start[:, 7:14]).max() <= 0.005
    np.testing.assert_allclose(start[:, 7:14].std(0), 0.01 / 12**0.5, rtol=0.15)
    # Of (0.45, -0.05), 0.15 along x and -0.25 along y: the model file has the object's y before its x.
    np.testing.assert_allclose(start[:, 17:19].mean(0), [0.6, -0.3], atol=0.005)
    np.testing.assert_allclose(start[:, 17:19].std(0), 0.025, rtol=0.15)
    np.testing.assert_allclose(start[:, 19], -0.275)
    env: Any = gym.make(PUSHER).unwrapped
    env.reset(seed=0)
    np.testing.assert_allclose(env.data.body("goal").xpos, pets_pusher.GOAL)
    np.testing.assert_array_equal(env.data.qpos[-2:], 0)


def test_pusher_reward() -> None:
    state = torch.zeros(20)
    state[14:17] = torch.tensor([0.1, 0.2, -0.3])
    state[17:20] = torch.tensor([0.45 + 0.2, -0.05 - 0.1, -0.323])
    reward = pets_pusher.reward_function(state, None, torch.tensor([1.0, -2, 0, 0, 0, 0, 0]), state * 0)
    assert float(reward) == pytest.approx(-1.25 * 0.3 - 0.5 * (0.55 + 0.35 + 0.023) - 0.1 * 5)


def test_pusher_observes_current_positions() -> None:
    env: Any = gym.make(PUSHER).unwrapped
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(env.action_space.sample())
    env.set_state(env.data.qpos.copy(), env.data.qvel.copy())
    np.testing.assert_allclose(obs[14:], np.concatenate([env.data.body(n).xpos for n in ("tips_arm", "object")]))


def test_pusher_pushes_as_with_the_mujoco_of_the_paper() -> None:
    """Recorded with MuJoCo 2.3.7 and the released environment's model, of which gymnasium has a copy, pusher.xml."""
    env: Any = gym.make(PUSHER).unwrapped
    env.reset(seed=0)
    position = np.array([0.13, 0.58, -1.5, -1.43, -1.51, 0, -0.45, -0.07, -0.02, 0, 0])
    velocity = np.array([0.47, 0.28, 0.13, 0.5, 0.27, 0, -2, 0, 0, 0, 0])
    env.set_state(position, velocity)
    torques = np.array([0.19, -0.05, -0.13, 0.21, 0.03, -0.05, -0.02])
    path = [env.step(torques)[0][17:19] for _ in range(20)]
    expected = [[0.4301, -0.1167], [0.4310, -0.0866], [0.4354, -0.0604], [0.4562, -0.0392]]
    np.testing.assert_allclose(path[4::5], expected, atol=0.003)  # as it comes, the object gets to y = -0.094 only
    assert min(contact.dist for contact in env.data.contact) > -0.001
    again = pickle.loads(pickle.dumps(env))
    again.reset(seed=0)
    thing = env.model.body("object").id
    assert env.model.body_invweight0[thing, 0] == again.model.body_invweight0[thing, 0] == pytest.approx(50 / 3)


# ------------------------------------------------------------------ HalfCheetah


def test_half_cheetah_is_gymnasiums_with_a_velocity() -> None:
    plain = gym.make("HalfCheetah-v5", reset_noise_scale=0.001)
    env = gym.make(CHEETAH)
    env.action_space.seed(0)
    rest, (obs, _) = plain.reset(seed=0)[0], env.reset(seed=0)
    np.testing.assert_array_equal(obs, [0.0, *rest])
    bare: Any = env.unwrapped
    for _ in range(20):
        action, before = env.action_space.sample(), bare.data.qpos[0]
        rest, expected, *_ = plain.step(action)
        obs, reward, *_ = env.step(action)
        velocity = (bare.data.qpos[0] - before) / 0.05
        np.testing.assert_allclose(obs, [velocity, *rest], rtol=1e-12)
        assert reward == expected
        assert reward == pytest.approx(velocity - 0.1 * np.square(action).sum(), rel=1e-6)


def test_half_cheetah_starts() -> None:
    start = starts(CHEETAH)
    assert (start[:, 0] == 0).all()
    assert np.abs(start[:, 1:9]).max() <= 0.001
    np.testing.assert_allclose(start[:, 9:].std(0), 0.001, rtol=0.15)
