"""Compare model-free training with tianshou's own trainer: `python -m experiments.benchmarks.model_free`.

SAC with a tuned entropy coefficient, batches of 256, spaces of HalfCheetah's size, one update for each step of an
environment that reads its observations from a table; both sides start with the same networks, optimisers and
transitions. The loop is tianshou's `run_training`, and `Collector.step` with `PolicyLevel.learn`; the update alone
includes drawing its batch. Process CPU time on one thread. Competitors alternate in one process; ratios are of
medians.
"""

from dataclasses import dataclass
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
from torch import nn

from experiments.benchmarks.machine import alternate, machine_line, write_page
from experiments.report.tables import Cell, Table
from layeredrl.collector import Collector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLearningConfig, PolicyLevel, off_policy
from layeredrl.levels.off_policy import OffPolicyAlgorithm, SACConfig
from layeredrl.task import TaskSpec

OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (17,), np.float32), Box(-1.0, 1.0, (6,), np.float32)
REPLAY_SIZE, BATCH_SIZE = 100_000, 256


@dataclass(frozen=True)
class ModelFreeBenchmark:
    """Measure the speed of model-free training."""

    rounds: int = 7
    """Number of repetitions."""
    steps: int = 200
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


def make_algorithm(hidden: tuple[int, ...]) -> OffPolicyAlgorithm:
    """Build the algorithm, the same at every call."""
    torch.manual_seed(0)
    return SACConfig(hidden=hidden).build(OBSERVATIONS.shape[0], ACTIONS, torch.device("cpu"))


class Ours:
    """Flat agent of this library, in training.

    Args:
        hidden: Widths of the networks.
        config: Settings of the benchmark.
    """

    def __init__(self, hidden: tuple[int, ...], config: ModelFreeBenchmark) -> None:
        learning = PolicyLearningConfig(n_random_steps=0, batch_size=BATCH_SIZE, replay_size=REPLAY_SIZE)
        self.level = PolicyLevel(make_algorithm(hidden), ACTIONS, n_envs=1, learning=learning)
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


def _to_tensors(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(torch.as_tensor(arg) if isinstance(arg, np.ndarray) else arg for arg in args)


class Theirs:
    """The same algorithm in tianshou's trainer.

    Args:
        hidden: Widths of the networks.
        config: Settings of the benchmark.
    """

    def __init__(self, hidden: tuple[int, ...], config: ModelFreeBenchmark) -> None:
        self.algorithm = make_algorithm(hidden)
        for module in self.algorithm.modules():
            if hasattr(module, "net"):  # this library's networks take tensors; tianshou's collector has arrays
                module.register_forward_pre_hook(_to_tensors)
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


def main() -> None:
    """Measure and write the table."""
    config = tyro.cli(ModelFreeBenchmark, prog="python -m experiments.benchmarks.model_free")
    torch.set_num_threads(1)
    rows: list[list[Cell]] = []
    for hidden in ((256, 256), (64, 64)):
        ours, theirs = Ours(hidden, config), Theirs(hidden, config)
        competitors = (ours.loop, theirs.loop, ours.updates, theirs.updates)
        loop, their_loop, updates, their_updates = map(median, alternate(*competitors, rounds=config.rounds))
        for name, own, other in (("loop", loop, their_loop), ("update alone", updates, their_updates)):
            size = f"{len(hidden)} x {hidden[0]}"
            rows.append([size, name, config.steps / own, config.steps / other, other / own])
    columns = ("networks", "measured", "LayeredRL, updates/s", "tianshou, updates/s", "ratio")
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
