"""Rules of the mazes, and the single environment. Promises of all tasks are tested in test_known_tasks."""

import copy
import itertools
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs  # noqa: F401  registers the tasks
from envs.maze2d import Maze2D
from envs.maze2d_layouts import CORRIDOR, MEDIUM, SIMPLE, Layout
from envs.maze2d_rules import MazeRules
from layeredrl.environments import make_task
from layeredrl.world_model import Encoder, Oracle
from tests.envs import maze_reference

OPEN = Layout("open", ("....", ".#..", "...."), ((0.5, 0.5),), ((3.5, 2.5),))
"""Maze without outer walls, so that the world's edge stops the agent."""
LAYOUTS = [MEDIUM, CORRIDOR, OPEN]
PAIRS = list(itertools.permutations(MEDIUM.starts, 2))


def moves(layout: Layout, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 2), and velocities (n, 2) of which many are beyond the bounds or along an axis."""
    rng = np.random.default_rng(seed)
    velocities = rng.uniform(-1.5, 1.5, (n, 2)) * (rng.random((n, 2)) < 0.8)
    return maze_reference.free_positions(layout, n, seed), velocities


def run(env: Maze2D, actions: np.ndarray, **options: Any) -> np.ndarray:
    """Positions (T+1, 2) of an episode."""
    path = [env.reset(seed=0, options=options)[0]["observation"]]
    path += [env.step(action)[0]["observation"] for action in actions]
    return np.array(path)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("drift", [(0.0, 0.0), (0.3, -0.07)])
def test_moves_are_those_of_the_plain_rules(layout: Layout, drift: tuple[float, float]) -> None:
    rules = MazeRules(layout, drift=drift)
    positions, velocities = moves(layout, 300, 0)
    pairs = zip(positions, velocities, strict=True)
    expected = np.array([maze_reference.move(layout, p, v, np.array(drift)) for p, v in pairs])
    one = [rules.move(tuple(p), tuple(v), 1) for p, v in zip(positions.tolist(), velocities.tolist(), strict=True)]
    many = rules.move_all(positions, velocities, np.ones(len(positions), np.int64))
    np.testing.assert_allclose(many, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(one, many)  # to the last bit
    moved = positions + 0.1 * velocities.clip(-1, 1) + drift
    assert 0.02 < (np.abs(many - moved).max(1) > 1e-9).mean() < 0.6  # some moves were blocked


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_torch_follows(layout: Layout) -> None:
    rules = MazeRules(layout, drift=(0.02, 0.05))
    positions, velocities = moves(layout, 600, 1)
    expected = torch.from_numpy(rules.move_all(positions, velocities, np.ones(600, np.int64)))
    state, action = torch.from_numpy(positions), torch.from_numpy(velocities)
    torch.testing.assert_close(rules.dynamics_function(state, None, action), expected, rtol=0, atol=1e-12)
    found = rules.dynamics_function(state.float(), None, action.float())
    assert found.dtype == torch.float32
    # Where rounding decides about a corner, float32 and float64 may differ.
    assert ((found - expected).abs().amax(-1) < 2e-6).float().mean() > 0.998
    twice = torch.cat((state, state), -1).reshape(3, 20, 10, 4)
    batched = rules.dynamics_function(twice, None, action.reshape(3, 20, 10, 2))
    torch.testing.assert_close(batched, torch.cat((expected, expected), -1).reshape(3, 20, 10, 4))
    lost = rules.dynamics_function(torch.full((2,), torch.nan), None, torch.zeros(2))
    assert lost.isnan().all()
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 2\)"):
        rules.dynamics_function(torch.zeros(5, 3), None, torch.zeros(5, 2))


def test_touching_a_wall_at_just_the_radius_is_allowed_in_any_precision() -> None:
    rules = MazeRules(MEDIUM)
    assert rules.move((1.2, 1.5), (-0.5, 0.0), 1) == pytest.approx((1.15, 1.5))
    assert rules.move((1.2, 1.5), (-0.51, 0.0), 1) == (1.2, 1.5)
    for dtype in (torch.float32, torch.float64):
        start = torch.tensor([1.2, 1.5], dtype=dtype)
        after = rules.dynamics_function(start, None, torch.tensor([-0.5, 0.0], dtype=dtype))
        torch.testing.assert_close(after, torch.tensor([1.15, 1.5], dtype=dtype))


@pytest.mark.parametrize(("layout", "reward_type"), [("corridor", "dense"), ("medium", "sparse")])
def test_functions_are_the_environments(layout: str, reward_type: str) -> None:
    env = Maze2D(layout, reward_type=reward_type, drift=(0.01, 0.0))
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    rows = []
    for i in range(300):
        action = env.action_space.sample()
        after, reward, terminated, _, info = env.step(action)
        state = np.concatenate((obs["achieved_goal"], obs["observation"]))
        next_state = np.concatenate((after["achieved_goal"], after["observation"]))
        rows.append((state, obs["desired_goal"], action, next_state, reward, terminated, info["is_success"]))
        near = obs["desired_goal"] - np.float32(0.3)
        obs = env.reset(options={"start": near, "goal": obs["desired_goal"]})[0] if i % 20 == 19 else after
    columns = [torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True)]
    state, goal, action, next_state, rewards, terminated, success = columns
    known = copy.deepcopy(env.reward_function), pickle.loads(pickle.dumps(env.dynamics_function))
    for width in (2, 4):
        found = known[0](state[:, :width], goal, action, next_state[:, :width])
        torch.testing.assert_close(found, rewards.float())
        after = known[1](state[:, :width], goal, action)
        torch.testing.assert_close(after, next_state[:, :width], rtol=0, atol=2e-6)
    assert torch.equal(env.termination_function(state, goal, action, next_state), terminated)
    assert 0 < success.sum() < 300
    if reward_type == "sparse":
        assert torch.equal(rewards, success.double())
    else:
        distance = (next_state[:, :2] - goal).norm(dim=-1).double()
        torch.testing.assert_close(rewards, -distance / np.linalg.norm(env.layout.walls.shape), rtol=1e-5, atol=1e-6)


def test_an_oracle_of_the_task_follows_the_environment() -> None:
    task = make_task("Maze2D-Medium-v0")
    encoder = Encoder(task)
    env = Maze2D("medium")
    env.action_space.seed(1)
    actions = np.array([env.action_space.sample() for _ in range(40)])
    path = run(env, actions)
    obs = torch.from_numpy(task.flatten({key: value[None] for key, value in env.reset(seed=0)[0].items()}))
    state, context = encoder(obs)
    assert context.tolist() == [list(env._goal)]
    found = Oracle.from_task(task, encoder).rollout(state, context, torch.from_numpy(actions)[None])
    np.testing.assert_allclose(found.state[0, 0, 0], np.concatenate((path, path), 1), rtol=0, atol=1e-5)


def test_layouts() -> None:
    assert MEDIUM.walls.shape == (8, 8)
    assert MEDIUM.walls.sum() == 64 - 26
    assert MEDIUM.diameter == pytest.approx(11.314, abs=1e-3)
    assert SIMPLE.walls.shape == (10, 10)
    assert CORRIDOR.walls.shape == (5, 20)
    for layout in (SIMPLE, CORRIDOR, MEDIUM):
        assert np.pad(layout.walls[1:-1, 1:-1], 1, constant_values=True).sum() == layout.walls.sum()
    with pytest.raises(ValueError, match=r"layout is 'large'; it should be a Layout or one of 'simple'"):
        Maze2D("large")
    with pytest.raises(ValueError, match="equally long"):
        Layout("odd", ("###", "#."), ((1.5, 0.5),), ((1.5, 0.5),))
    with pytest.raises(ValueError, match=r"starts is \(1\.5, 1\.5\), in a wall"):
        Layout("blocked", OPEN.rows, ((1.5, 1.5),), OPEN.goals)


def test_medium_is_gymnasium_robotics_maze() -> None:
    maps = pytest.importorskip("gymnasium_robotics.envs.maze.maps")
    np.testing.assert_array_equal(MEDIUM.walls, np.array(maps.MEDIUM_MAZE) == 1)


def test_starts_and_goals_are_different_corners_equally_often() -> None:
    env = Maze2D("medium")
    env.reset(seed=0)
    drawn = []
    for _ in range(600):
        obs, info = env.reset()
        drawn.append((*obs["observation"].tolist(), *obs["desired_goal"].tolist()))
        assert not info["is_success"]
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(pair) for pair in pairs.tolist()} == {(*start, *goal) for start, goal in PAIRS}
    assert counts.min() > 25  # of 50 each
    assert len({str(Maze2D("simple").reset(seed=seed)[0]) for seed in range(5)}) == 1
    only_start = [env.reset(options={"start": (1.5, 1.5)})[0]["desired_goal"].tolist() for _ in range(50)]
    assert len(np.unique(only_start, axis=0)) == 3
    assert Maze2D("simple").reset(options={"start": (8.5, 8.5)})[1]["is_success"]  # its only goal


def test_truncates_at_its_own_limit_and_never_terminates() -> None:
    env = gym.make("Maze2D-Medium-v0")
    env.reset(seed=0, options={"goal": (1.5, 1.5), "start": (1.5, 1.5)})
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(400)]
    assert ends == [(False, False)] * 399 + [(False, True)]
    env = gym.make("Maze2D-Medium-v0", max_steps=3)
    for _ in range(2):
        env.reset()
        assert [env.step(np.zeros(2, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_drift_and_impulse() -> None:
    rest = [np.zeros(2, np.float32)] * 6
    path = run(Maze2D("simple", drift=(0.05, -0.02)), rest, start=(4.0, 4.0))
    np.testing.assert_allclose(path, 4.0 + np.arange(7)[:, None] * [0.05, -0.02], atol=1e-6)
    pushed = Maze2D("simple", drift=(0.05, 0.0), impulse=(0.4, -0.3), impulse_at=3)
    for _ in range(2):  # in each episode
        path = run(pushed, rest, start=(4.0, 4.0))
        np.testing.assert_allclose(np.diff(path[:, 0]), [0.05, 0.05, 0.45, 0.05, 0.05, 0.05], atol=1e-6)
        np.testing.assert_allclose(np.diff(path[:, 1]), [0, 0, -0.3, 0, 0, 0], atol=1e-6)
    at_the_wall = run(Maze2D("simple", impulse=(-1.0, 0.2), impulse_at=1), rest, start=(1.3, 4.0))
    np.testing.assert_allclose(at_the_wall[1:], np.tile([1.3, 4.2], (6, 1)), atol=1e-6)


def greedy(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.clip((observation["desired_goal"] - observation["observation"]) / 0.1, -1, 1)


def test_baselines_over_all_pairs_of_corners() -> None:
    env = Maze2D("medium")
    returns, successes = {"still": [], "greedy": []}, []
    for (start, goal), policy in itertools.product(PAIRS, returns):
        obs, _ = env.reset(seed=0, options={"start": start, "goal": goal})
        total, truncated, reached = 0.0, False, False
        while not truncated:
            action = greedy(obs) if policy == "greedy" else np.zeros(2, np.float32)
            obs, reward, _, truncated, info = env.step(action)
            total, reached = total + reward, reached or info["is_success"]
        returns[policy].append(total)
        if policy == "greedy":
            successes.append(reached)
    assert np.mean(returns["still"]) == pytest.approx(-400 * (8 * 5 + 4 * 50**0.5) / 12 / 128**0.5)  # -201
    assert np.mean(returns["greedy"]) == pytest.approx(-108.6, abs=0.1)
    assert np.mean(successes) == pytest.approx(2 / 12)


def test_shortest_paths() -> None:
    rules = MazeRules(MEDIUM)
    velocities = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)))
    steps = []
    for start in MEDIUM.starts:
        reached = {start: 0}
        frontier = np.array([start])
        for step in range(1, 90):
            positions = np.repeat(frontier, 9, axis=0)
            after = rules.move_all(positions, np.tile(velocities, (len(frontier), 1)), np.ones(len(positions), int))
            new = {tuple(place) for place in after.round(6).tolist()} - reached.keys()
            reached.update(dict.fromkeys(new, step))
            frontier = np.array(list(new))
            if not new:
                break
        places, times = np.array(list(reached)), np.array(list(reached.values()))
        goals = [goal for goal in MEDIUM.goals if goal != start]
        steps += [times[np.linalg.norm(places - goal, axis=1) < 0.3].min() for goal in goals]
    assert (min(steps), max(steps)) == (47, 64)
    assert np.mean(steps) == pytest.approx(56.33, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_type": "shaped"}, "reward_type is 'shaped'; it should be 'dense' or 'sparse'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"drift": (0.1,)}, r"drift is \(0\.1,\); it should be two finite numbers"),
        ({"drift": (0.1, np.nan)}, "drift is .*nan"),
        ({"impulse": (0.1, 0.0)}, r"impulse is \(0\.1, 0\.0\) and impulse_at None"),
        ({"impulse": (0.1, 0.0), "impulse_at": 0}, "impulse_at is 0"),
        ({"impulse": (0.0, -0.9), "impulse_at": 1, "drift": (0.0, 0.2)}, "at most 1 m along each axis"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze2D("medium", **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": (0.5, 0.5)}, r"options\['start'\] is \(0\.5, 0\.5\), in a wall"),
        ({"start": (1.1, 1.5)}, r"options\['start'\] is \(1\.1, 1\.5\), .* at least 0\.15 m from the walls"),
        ({"start": (-1, 2)}, r"options\['start'\] is \(-1, 2\); .* 0 to 8 and 0 to 8"),
        ({"start": (1.5, 1.5, 0.0)}, r"options\['start'\] is .*; it should be \(x, y\)"),
        ({"goal": (3.5, 1.5)}, r"options\['goal'\] is \(3\.5, 1\.5\), in a wall"),
        ({"goal": (8.0, 8.0)}, r"options\['goal'\] is \(8\.0, 8\.0\), in a wall"),
        ({"goal": (np.nan, 8.5)}, r"options\['goal'\] is \(nan, 8\.5\)"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze2D("medium").reset(options=options)


def test_bad_steps_are_named() -> None:
    env = Maze2D("medium")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(3,\); it should be \(2,\)"):
        env.step(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"action is .*nan"):
        env.step(np.array([0.0, np.nan], np.float32))


def test_copies_are_independent() -> None:
    env = Maze2D("medium", render_mode="rgb_array")
    env.reset(seed=3)
    env.render()
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        state = str(env.step(np.ones(2, np.float32)))
        assert str(other.step(np.ones(2, np.float32))) == state
        assert str(other.reset()) == str(copy.deepcopy(env).reset())
        env.reset(seed=3)
