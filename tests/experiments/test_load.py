"""`layeredrl.load`, which gives the agent of a run for a loop of one's own."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import layeredrl
from layeredrl.collector import Collector
from layeredrl.environments import make_vector_env
from layeredrl.randomness import globals_state
from layeredrl.storage import Checkpoints
from tests.recording import leaves

ENV = "ContinuousCartPole-v0"


def test_a_loop_of_one_s_own_plays_the_episode_of_evaluate(trained: Path) -> None:
    """The collector is that of `experiments.evaluate`, with its default seed."""
    seed = 1_000_000
    agent = layeredrl.load(trained).agent
    (theirs,) = Collector(make_vector_env(ENV), agent, seed=seed, learn=False).collect_episodes(1)
    policy, env = layeredrl.load(str(trained), device="cpu", seed=seed), gym.make(ENV)
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    rewards, done = [], False
    while not done:
        obs, reward, terminated, truncated, _ = env.step(policy.predict(obs))
        rewards.append(float(reward))
        done = terminated or truncated
    assert (sum(rewards), len(rewards)) == (theirs.episode_return, theirs.length)


def test_loading_leaves_the_program_as_it_is(trained: Path) -> None:
    torch.set_num_threads(2)
    before = leaves(globals_state())
    layeredrl.load(trained)
    assert leaves(globals_state()) == before
    assert torch.get_num_threads() == 2


def test_the_best_checkpoint_on_request(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = Checkpoints.load

    def recorded(self: Checkpoints, *args: object, **kwargs: object) -> object:
        asked.append(kwargs["best"])
        return load(self, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "load", recorded)
    layeredrl.load(trained)
    layeredrl.load(trained, best=True)
    assert asked == [False, True]


def test_runs_that_cannot_be_loaded_are_named(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"runs/none/config\.json cannot be read"):
        layeredrl.load("runs/none")
    with pytest.raises(ValueError, match="device is 'tpu', expected cpu, cuda"):
        layeredrl.load(trained, device="tpu")
