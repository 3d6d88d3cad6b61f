"""Compare model-free training with tianshou's own trainer: `python -m experiments.benchmarks.model_free`.

SAC with a tuned entropy coefficient and TD3, batches of 256, spaces of HalfCheetah's size, one update for each step of
an environment that reads its observations from a table; both sides start with the same networks, optimisers and
transitions. The loop is tianshou's `run_training`, and `Collector.step` with `PolicyLevel.learn`; the update alone
includes drawing its batch. The bare products are the matrix products of an update's forward and backward passes, and
nothing else. Process CPU time on one thread. Competitors alternate in one process; ratios are of medians.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from tianshou.data import Batch, VectorReplayBuffer
from tianshou.data import Collector as TianshouCollector
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.torch_utils import policy_within_training_step
from torch import Tensor

from experiments.benchmarks.machine import alternate, machine_line, write_page
from experiments.benchmarks.tianshou_algorithms import make_tianshou
from experiments.report.tables import Cell, Table
from layeredrl import off_policy
from layeredrl.collector import Collector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLearningConfig, PolicyLevel
from layeredrl.off_policy import SACConfig, TD3Config
from layeredrl.task import TaskSpec

OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (17,), np.float32), Box(-1.0, 1.0, (6,), np.float32)
REPLAY_SIZE, BATCH_SIZE = 100_000, 256


@dataclass(frozen=True)
class ModelFreeBenchmark:
    """Measure the speed of model-free training."""

    rounds: int = 7
    """Number of repetitions."""
    steps: int = 100
    """Number of updates in each."""
    n_stored: int = 10_000
    """Number of transitions in the replay at the start."""
    output: Path = Path("experiments/results/model_free_speed.md")
    """Markdown file to write."""


class TableEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Environment of almost no cost: observations and rewards are read from a table and ignore the actions."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def __init__(self, length: int = 1000) -> None:
        rng = np.random.default_rng(0)
        self._obs = rng.normal(size=(length + 1, *OBSERVATIONS.shape)).astype(np.float32)
        self._rewards = rng.normal(size=length).tolist()
        self._n = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._n = 0
        return self._obs[0], {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._n += 1
        return self._obs[self._n], self._rewards[self._n - 1], False, self._n == len(self._rewards), {}


def transitions(n: int) -> list[Batch]:
    """Return random transitions of one environment, in the order of time."""
    rng, one = np.random.default_rng(1), np.ones(1, np.int64)
    obs = rng.normal(size=(n + 1, 1, *OBSERVATIONS.shape)).astype(np.float32)
    act = rng.uniform(-1, 1, (n, 1, *ACTIONS.shape)).astype(np.float32)
    rew = rng.normal(size=(n, 1))
    over = np.zeros(1, bool)
    return [
        Batch(
            obs=obs[i],
            act=act[i],
            rew=rew[i],
            terminated=over,
            truncated=np.full(1, i == n - 1),
            obs_next=obs[i + 1],
            info=Batch(duration=one),
        )
        for i in range(n)
    ]


class Ours:
    """Flat agent of this library, in training.

    Args:
        settings: Settings of the algorithm.
        config: Settings of the benchmark.
    """

    def __init__(self, settings: SACConfig | TD3Config, config: ModelFreeBenchmark) -> None:
        learning = PolicyLearningConfig(n_random_steps=0, batch_size=BATCH_SIZE, replay_size=REPLAY_SIZE)
        torch.manual_seed(0)
        algorithm = settings.build(OBSERVATIONS.shape[0], ACTIONS, torch.device("cpu"))
        self.level = PolicyLevel(algorithm, ACTIONS, n_envs=1, learning=learning)
        for transition in transitions(config.n_stored):
            self.level.replay.add(transition, np.arange(1))
        self.agent = Hierarchy([self.level], TaskSpec(OBSERVATIONS, ACTIONS))
        envs = SyncVectorEnv([TableEnv], autoreset_mode=AutoresetMode.DISABLED)
        self.collector = Collector(envs, self.agent, seed=0)
        self.steps = config.steps

    def loop(self) -> None:
        """Take steps of the environment, with an update each."""
        before = self.level.n_updates
        for _ in range(self.steps):
            self.collector.step(explore=True)
            self.agent.learn(self.collector.n_total_env_steps)
        assert self.level.n_updates == before + self.steps

    def updates(self) -> None:
        """Do the updates alone."""
        for _ in range(self.steps):
            off_policy.update(self.level.algorithm, self.level.sample())


class Theirs:
    """The same algorithm in tianshou's trainer.

    Args:
        settings: Settings of the algorithm.
        config: Settings of the benchmark.
    """

    def __init__(self, settings: SACConfig | TD3Config, config: ModelFreeBenchmark) -> None:
        torch.manual_seed(0)
        self.algorithm: Any = make_tianshou(settings, OBSERVATIONS.shape[0], ACTIONS)
        self.buffer = VectorReplayBuffer(REPLAY_SIZE, 1)
        for transition in transitions(config.n_stored):
            self.buffer.add(transition, buffer_ids=np.arange(1))
        self.collector: Any = TianshouCollector(self.algorithm, DummyVectorEnv([TableEnv]), self.buffer)
        self.steps = config.steps

    def loop(self) -> None:
        """Take steps of the environment, with an update each."""
        params = OffPolicyTrainerParams(
            training_collector=self.collector,
            max_epochs=1,
            epoch_num_steps=self.steps,
            collection_step_num_env_steps=1,
            batch_size=BATCH_SIZE,
            update_step_num_gradient_steps_per_sample=1,
            verbose=False,
            show_progress=False,
        )
        result = self.algorithm.run_training(params)
        assert result.update_step == self.steps

    def updates(self) -> None:
        """Do the updates alone."""
        with policy_within_training_step(self.algorithm.policy):
            for _ in range(self.steps):
                self.algorithm.update(buffer=self.buffer, sample_size=BATCH_SIZE)


class Products:
    """Matrix products of the updates, each network with matrices of its own.

    Args:
        settings: Settings of the algorithm.
        config: Settings of the benchmark.
    """

    def __init__(self, settings: SACConfig | TD3Config, config: ModelFreeBenchmark) -> None:
        n_obs, n_actions = OBSERVATIONS.shape[0], ACTIONS.shape[0]
        self.is_sac = isinstance(settings, SACConfig)
        n_outputs = 2 * n_actions if self.is_sac else n_actions
        self.actor, self.slow_actor = (_matrices([n_obs, *settings.hidden, n_outputs]) for _ in range(2))
        pairs = [[_matrices([n_obs + n_actions, *settings.hidden, 1]) for _ in range(2)] for _ in range(2)]
        self.critics, self.slow_critics = pairs
        self.obs, self.both = torch.randn(BATCH_SIZE, n_obs), torch.randn(BATCH_SIZE, n_obs + n_actions)
        self.by_value, self.by_output = torch.randn(BATCH_SIZE, 1), torch.randn(BATCH_SIZE, n_outputs)
        self.actor_every = 1 if isinstance(settings, SACConfig) else settings.actor_every
        self.steps = config.steps

    def updates(self) -> None:
        """Do the products of the updates."""
        for i in range(self.steps):
            _forward(self.obs, self.actor if self.is_sac else self.slow_actor)
            for critic in self.slow_critics:
                _forward(self.both, critic)
            for critic in self.critics:
                _backward(self.by_value, critic, _forward(self.both, critic))
            if i % self.actor_every == 0:
                inputs = _forward(self.obs, self.actor)
                for critic in self.critics if self.is_sac else self.critics[:1]:
                    _forward(self.both, critic)
                    _action_gradient(self.by_value, critic)
                _backward(self.by_output, self.actor, inputs)


def _matrices(widths: list[int]) -> list[Tensor]:
    return [torch.randn(n, m) / n**0.5 for n, m in pairwise(widths)]


def _forward(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Inputs of each layer."""
    inputs = []
    for weight in weights:
        inputs.append(x)
        x = x @ weight
    return inputs


def _backward(gradient: Tensor, weights: list[Tensor], inputs: list[Tensor]) -> None:
    for i in reversed(range(len(weights))):
        _ = inputs[i].T @ gradient
        if i:
            gradient = gradient @ weights[i].T


def _action_gradient(gradient: Tensor, weights: list[Tensor]) -> None:
    """Gradient by the last inputs of a critic, which are the actions."""
    first, *others = weights
    for weight in reversed(others):
        gradient = gradient @ weight.T
    _ = gradient @ first[-ACTIONS.shape[0] :].T


def main() -> None:
    """Measure and write the table."""
    config = tyro.cli(ModelFreeBenchmark, prog="python -m experiments.benchmarks.model_free")
    torch.set_num_threads(1)
    rows: list[list[Cell]] = []
    for hidden in ((256, 256), (64, 64)):
        for name, settings in (("SAC", SACConfig(hidden=hidden)), ("TD3", TD3Config(hidden=hidden))):
            ours, theirs, products = (side(settings, config) for side in (Ours, Theirs, Products))
            competitors = (ours.loop, theirs.loop, ours.updates, theirs.updates, products.updates)
            loop, their_loop, updates, their_updates, bare = map(median, alternate(*competitors, rounds=config.rounds))
            first = f"{name}, {len(hidden)} x {hidden[0]}"
            for what, own, other in (("loop", loop, their_loop), ("update alone", updates, their_updates)):
                rates = (config.steps / seconds for seconds in (own, other, bare))
                rows.append([first, what, *rates, other / own, own / bare])
    columns = (
        "networks",
        "measured",
        "LayeredRL, updates/s",
        "tianshou, updates/s",
        "bare products, updates/s",
        "LayeredRL : tianshou",
        "time : bare products",
    )
    text = __doc__.split("\n\n")[1] if __doc__ else ""
    write_page(
        config.output,
        "Speed of model-free training",
        "python -m experiments.benchmarks.model_free",
        (text, Table("speed", "Speed", columns, rows)),
        machine_line("tianshou", "gymnasium", threads=1),
    )


if __name__ == "__main__":
    main()
