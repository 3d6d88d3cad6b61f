"""Environments on a device against the single environments in numpy: the same seeds, the same transitions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

import envs  # noqa: F401  registers the tasks
from agents.sac import SAC
from envs.maze2d import Maze2D
from envs.on_device import CartPoles, Mazes, OnDevice, Pendulums, SwingUps
from experiments.run.building import build_agent, make_collector
from experiments.run.config import parse
from layeredrl.collector import Collector
from layeredrl.device_collector import DeviceCollector
from layeredrl.environments import UnknownEnvironmentError, make_task, make_vector_env
from layeredrl.randomness import seed_globals
from tests.experiments.commands import run_evaluate, run_train
from tests.fake_gpu import CUDA, FakeGPU

N = 4
TASKS = {
    "maze": ("Maze2D-Medium-v0", {"max_steps": 9, "drift": (0.01, -0.02)}),
    "maze, sparse": ("Maze2D-Corridor-v0", {"max_steps": 9, "reward_type": "sparse"}),
    "cart-pole": ("ContinuousCartPole-v0", {}),
    "swing-up": ("CartPoleSwingUp-v0", {}),
    "pendulum": ("SwingUpPendulum-v0", {}),
}
KINDS: list[type[OnDevice]] = [Mazes, CartPoles, SwingUps, Pendulums]


def flat(space: spaces.Space, obs: Any) -> np.ndarray:
    return np.concatenate([obs[key] for key in space], 1) if isinstance(space, spaces.Dict) else obs


@pytest.mark.parametrize(("env_id", "settings"), TASKS.values(), ids=TASKS)
def test_transitions_are_those_in_numpy(env_id: str, settings: dict[str, Any]) -> None:
    mine = make_vector_env(env_id, N, vectorization="native", device="cpu", **settings)
    theirs = make_vector_env(env_id, N, **settings)
    assert mine.single_observation_space == theirs.single_observation_space
    assert mine.single_action_space == theirs.single_action_space
    exact = env_id.startswith("Maze")  # others have sines, which differ in the last digit
    rng, over, n_ended = np.random.default_rng(0), np.ones(N, bool), 0
    for i in range(80):
        if over.any():
            options = {"reset_mask": over} if i else None
            seeds = rng.integers(2**31, size=N).tolist()
            obs, expected = (env.reset(seed=seeds, options=options)[0] for env in (mine, theirs))
            np.testing.assert_array_equal(
                flat(mine.single_observation_space, obs)[over], flat(mine.single_observation_space, expected)[over]
            )
        action = rng.uniform(-1, 1, (N, *mine.single_action_space.shape)).astype(np.float32)
        if i % 2:
            action = np.sign(action)  # quickly to a wall, or to the end
        obs, reward, terminated, truncated, info = mine.step(action)
        obs_, reward_, terminated_, truncated_, info_ = theirs.step(action)
        for a, b in ((flat(mine.single_observation_space, x) for x in (obs, obs_)), (reward, reward_)):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
        np.testing.assert_array_equal(terminated, terminated_)
        np.testing.assert_array_equal(truncated, truncated_)
        if "is_success" in info_:
            np.testing.assert_array_equal(info["is_success"], info_["is_success"])
        over = terminated | truncated
        n_ended += over.sum()
    assert n_ended > 0 or env_id in ("CartPoleSwingUp-v0", "SwingUpPendulum-v0")  # these last for 200 steps
    mine.close()
    theirs.close()


@pytest.mark.parametrize("kind", KINDS)
def test_resets_without_seeds_are_drawn_like_those_with(kind: type[OnDevice]) -> None:
    env = kind(3000)
    obs = env.reset().double()
    seeded = kind(300).reset(seeds=range(300)).double()
    assert len(obs.unique(dim=0)) > 1
    torch.testing.assert_close(obs.mean(0), seeded.mean(0), atol=0.3, rtol=0)
    torch.testing.assert_close(obs.std(0), seeded.std(0), atol=0.3, rtol=0)
    spread = (seeded.amax(0) - seeded.amin(0)).clamp(min=1e-6)
    assert (obs >= seeded.amin(0) - 0.1 * spread).all()
    assert (obs <= seeded.amax(0) + 0.1 * spread).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_resets_some_and_their_episodes_are_truncated_later(kind: type[OnDevice]) -> None:
    env = kind(3, max_episode_steps=3)
    action = torch.zeros(3, *env.single_action_space.shape)
    before = env.reset(seeds=[0, 1, 2])
    for _ in range(2):
        before = env.step(action).obs
    mask = torch.tensor([True, False, False])
    after = env.reset(mask, seeds=[5, 6, 7])
    assert torch.equal(after[1:], before[1:])
    assert torch.equal(after[0], kind(1).reset(seeds=[5])[0])
    assert env.step(action).truncated.tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaves_the_device(kind: type[OnDevice]) -> None:
    with FakeGPU() as gpu:
        env = kind(3, device=CUDA)
        action, mask = torch.zeros(3, *env.single_action_space.shape, device=CUDA), torch.ones(3, device=CUDA) > 0
        env.reset()
        env.step(action)
        with gpu.counting() as events:
            env.step(action)
            env.reset(mask)
            step = env.step(action)
        assert (events.syncs, events.copies) == ([], []), str(events)
        assert all(x is None or x.device == CUDA for x in step)


class Count(TorchDispatchMode):
    """Counts operations."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_no_loop_over_environments(kind: type[OnDevice]) -> None:
    counts = []
    for n in (2, 200):
        env = kind(n)
        env.reset()
        still = torch.zeros(n, *env.single_action_space.shape)
        env.step(still)  # the first one of a process makes constants
        with Count() as count:
            env.step(still)
            env.reset(torch.ones(n, dtype=torch.bool))
        counts.append(count.n)
    assert counts[0] == counts[1] < 120


def test_a_step_of_the_vector_environment_is_one_copy_each_way() -> None:
    with FakeGPU() as gpu:
        env = make_vector_env("Maze2D-Medium-v0", 3, vectorization="native", device=CUDA)
        env.reset(seed=0)
        env.step(np.zeros((3, 2), np.float32))
        with gpu.counting() as events:
            env.step(np.zeros((3, 2), np.float32))
        assert (len(events.syncs), len(events.copies)) == (1, 1), str(events)


def test_episodes_begin_with_a_reset_and_end_with_one() -> None:
    env = make_vector_env("Maze2D-Medium-v0", 3, vectorization="native", device="cpu", max_steps=2).unwrapped
    still = np.zeros((3, 2), np.float32)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(still)
    with pytest.raises(gym.error.ResetNeeded, match="expected one of all"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(seed=0)
    for actions, message in ((still[:2], "shape"), (np.full((3, 2), np.nan, np.float32), "not finite")):
        with pytest.raises(ValueError, match=message):
            env.step(actions)
    env.step(still)
    assert env.step(still)[3].all()
    env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(gym.error.ResetNeeded, match=r"environments \[1\] have no episode"):
        env.step(still)


def test_a_run_with_environments_on_a_device_resumes_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    there = ("--env", "Maze2D-Simple-v0", "--n-envs", 2, "--vectorization", "native", "--env-device", "cpu")
    common = ("sac", "--preset", "debug", "--no-tensorboard", "--no-pictures", *there, "--name", "r")
    run_train(*common, "--trainer.n-total-env-steps", 40)
    run_train(*common, "--trainer.n-total-env-steps", 80)
    out = capsys.readouterr().out
    assert "goes on at 40 of 80" in out
    run_evaluate("runs/r", "--episodes", 1, "--device", "cpu")
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("agent", "device", "reason"),
    [("sac", "cpu", ""), ("mbpo", "cpu", "ImaginingLevel reads its replay"), ("sac", "cuda", "the agent is on cpu")],
)
def test_the_command_says_why_observations_go_through_the_host(
    agent: str, device: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        agent,
        "--preset",
        "debug",
        "--env",
        "SwingUpPendulum-v0",
        "--vectorization",
        "native",
        "--env-device",
        "cpu",
    ]
    config = parse(args, lambda *_: None)
    built = build_agent(config)
    config = replace(config, env_device=device)
    if device == "cuda":
        with FakeGPU():
            collector = make_collector(config, built)
    else:
        collector = make_collector(config, built)
    assert isinstance(collector, Collector if reason else DeviceCollector)
    out = capsys.readouterr().out
    assert reason in out
    assert ("go through the host" in out) == bool(reason)


def test_an_agent_learns_the_same_in_both() -> None:
    observed = []
    for device in (None, "cpu"):
        seed_globals(0)
        agent = SAC.preset("debug").build(make_task("Maze2D-Simple-v0", 3), torch.device("cpu"), seed=0)
        env = make_vector_env("Maze2D-Simple-v0", 3, vectorization="native", device=device, max_steps=7)
        collector = Collector(env, agent, seed=0)
        for _ in range(20):
            collector.step(explore=True)
            agent.learn(collector.n_total_env_steps)
        (level,) = agent.levels
        assert level.n_updates > 0
        observed.append(level.replay.all())
    assert observed[0].truncated.any()
    for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next"):
        np.testing.assert_array_equal(observed[0][key], observed[1][key])


def test_the_limit_of_an_episode_is_that_of_the_registration_or_of_the_arguments() -> None:
    for settings, limit in (({}, 200), ({"max_episode_steps": 3}, 3)):
        env = make_vector_env("SwingUpPendulum-v0", 1, vectorization="native", device="cpu", **settings)
        assert env.unwrapped.env.max_episode_steps == limit


class OtherMaze(Maze2D):
    """Might have other physics."""


gym.register("OtherMazeOnDevice-v0", OtherMaze)


@pytest.mark.parametrize("env_id", ["OtherMazeOnDevice-v0", "CartPole-v1"])
def test_other_environments_cannot_live_on_a_device(env_id: str) -> None:
    with pytest.raises(UnknownEnvironmentError, match=f"'{env_id}' has no torch_vector_env"):
        make_vector_env(env_id, 2, vectorization="native", device="cpu")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="vectorization is 'sync' with environments on a device, expected 'native'"):
        make_vector_env("Maze2D-Simple-v0", 2, device="cpu")
    with pytest.raises(UnknownEnvironmentError, match="impulse_at is 3; it should be None for mazes on a device"):
        make_vector_env("Maze2D-Simple-v0", 2, vectorization="native", device="cpu", impulse_at=3, impulse=(0.1, 0.1))
    env = make_vector_env("Maze2D-Simple-v0", 2, vectorization="native", device="cpu").unwrapped
    with pytest.raises(ValueError, match="options has start, expected reset_mask alone"):
        env.reset(options={"start": (1.5, 1.5)})
    with pytest.raises(ValueError, match="there are 1 seeds, expected 2"):
        env.reset(seed=[1])
