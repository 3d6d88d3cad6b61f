"""Environments in JAX: with a stand-in for JAX made of torch, and, where Brax is installed, with one of its tasks."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.random import Random
from agents.sac import SAC
from layeredrl.device_collector import DeviceCollector
from layeredrl.environments.jax_vector import JaxVector
from layeredrl.task import TaskSpec

CPU = torch.device("cpu")


class State(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    position: Any


class Line:
    """A point on a line: it begins at a tenth of its key's last digit, is moved by actions, and ends beyond 1.5."""

    action_size = 1

    def __init__(self, *, named: bool = False) -> None:
        self.named = named
        self.observation_size: Any = {"state": (2,), "privileged_state": (5,)} if named else 2

    def reset(self, key: Tensor) -> State:
        return self._state((key % 10) * 0.1, torch.zeros(()))

    def step(self, state: State, action: Tensor) -> State:
        return self._state(state.position + action[0], action[0])

    def _state(self, position: Tensor, reward: Tensor) -> State:
        obs: Any = torch.stack([position, 2 * position])
        return State(
            {"state": obs, "privileged_state": obs.repeat(3)[:5]} if self.named else obs,
            reward + 0 * position,
            (position > 1.5).float(),
            position,
        )


@pytest.fixture
def jax(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The part of JAX that the adapter uses, in torch."""
    made: Any = ModuleType("jax")
    made.jit, made.vmap = lambda function: function, torch.vmap
    made.random = SimpleNamespace(PRNGKey=lambda number: number)
    made.numpy = SimpleNamespace(where=torch.where)
    made.tree = SimpleNamespace(
        map=pytree.tree_map,
        leaves=pytree.tree_leaves,
        structure=pytree.tree_structure,
        unflatten=lambda form, leaves: pytree.tree_unflatten(leaves, form),
    )
    made.dlpack = ModuleType("jax.dlpack")
    made.dlpack.from_dlpack = torch.from_dlpack
    monkeypatch.setitem(sys.modules, "jax", made)
    monkeypatch.setitem(sys.modules, "jax.dlpack", made.dlpack)
    return made


@pytest.mark.parametrize("named", [False, True])
def test_steps_are_those_of_single_environments(jax: ModuleType, named: bool) -> None:
    env = JaxVector(Line(named=named), 3, max_episode_steps=4)
    assert env.single_observation_space.shape == (2,)
    position, n_steps = np.array([0.3, 0.9, 0.0]), np.zeros(3, int)
    obs = env.reset(seeds=[3, 9, 10])
    rng, over, n_ends = np.random.default_rng(0), np.zeros(3, bool), set()
    for _ in range(30):
        if over.any():
            seeds = rng.integers(100, size=3).tolist()
            obs = env.reset(torch.as_tensor(over), seeds=seeds)
            position = np.where(over, 0.1 * (np.array(seeds) % 10), position)
            n_steps[over] = 0
        np.testing.assert_allclose(obs, np.stack([position, 2 * position], 1), rtol=1e-5, atol=1e-6)
        action = rng.uniform(-1, 1, (3, 1)).astype(np.float32)
        step = env.step(torch.as_tensor(action))
        obs, position, n_steps = step.obs, position + action[:, 0], n_steps + 1
        np.testing.assert_allclose(step.reward, action[:, 0])
        assert step.terminated.tolist() == (position > 1.5).tolist()
        assert step.truncated.tolist() == (n_steps >= 4).tolist()
        over = (position > 1.5) | (n_steps >= 4)
        n_ends |= {*zip(step.terminated[over].tolist(), step.truncated[over].tolist(), strict=True)}
    assert {(True, False), (False, True)} <= n_ends


def test_resets_without_seeds_choose_among_initial_states(jax: ModuleType) -> None:
    env = JaxVector(Line(), 3)
    with pytest.raises(ValueError, match="the first reset has a mask"):
        env.reset(torch.ones(3, dtype=torch.bool))
    env.reset(seeds=[1, 2, 3])
    mask = torch.tensor([True, False, True])
    found = torch.stack([env.reset(mask)[:, 0] for _ in range(100)])
    torch.testing.assert_close(found[:, 1], torch.full((100,), 0.2))
    assert {round(10 * x) for x in found[:, 0].tolist()} == set(range(10))
    assert not torch.equal(found[:, 0], found[:, 2])


def test_an_agent_learns_and_resumes_there(jax: ModuleType) -> None:
    def make() -> tuple[Any, DeviceCollector]:
        torch.manual_seed(0)
        env = JaxVector(Line(), 3, max_episode_steps=6)
        agent = SAC.preset("debug").build(
            TaskSpec(env.single_observation_space, env.single_action_space, 3), CPU, seed=0
        )
        return agent, DeviceCollector(env, agent, seed=0)

    agent, collector = make()
    for _ in range(10):
        collector.step(explore=True)
        agent.learn(collector.n_total_env_steps)
    assert agent.levels[0].n_updates > 0
    state, learned = collector.state_dict(), agent.state_dict()
    torch.manual_seed(1)
    expected = [collector.step(explore=True) and collector._obs.tolist() for _ in range(8)]
    agent, collector = make()
    agent.load_state_dict(learned)
    collector.load_state_dict(state)
    torch.manual_seed(1)
    assert [collector.step(explore=True) and collector._obs.tolist() for _ in range(8)] == expected


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(ImportError, match=r"layeredrl\[brax\]"):
        JaxVector(Line(), 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_brax() -> None:
    """Against a single environment, stepped by itself; and an agent that acts there."""
    jax = pytest.importorskip("jax")
    envs = pytest.importorskip("brax.envs")
    single = envs.get_environment("inverted_pendulum", backend="spring")
    env = JaxVector(single, 3, max_episode_steps=20)
    obs = env.reset(seeds=[0, 1, 2])
    states = [single.reset(jax.random.PRNGKey(i)) for i in range(3)]
    step_one, rng = jax.jit(single.step), np.random.default_rng(0)
    for _ in range(5):
        np.testing.assert_allclose(obs, np.stack([np.asarray(state.obs) for state in states]), rtol=1e-4, atol=1e-5)
        action = rng.uniform(-1, 1, (3, 1)).astype(np.float32)
        step = env.step(torch.as_tensor(action))
        states = [step_one(state, one) for state, one in zip(states, action, strict=True)]
        np.testing.assert_allclose(step.reward, [float(state.reward) for state in states], rtol=1e-4)
        assert step.terminated.tolist() == [bool(state.done) for state in states]
        obs = step.obs
    agent = Random().build(TaskSpec(env.single_observation_space, env.single_action_space, 3), CPU, seed=0)
    episodes = DeviceCollector(env, agent, seed=0).collect_episodes(6)
    assert all(0 < episode.length <= 20 for episode in episodes)
