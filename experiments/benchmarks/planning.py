"""Measure the cost of a plan besides its rollouts: `python -m experiments.benchmarks.planning`.

Process CPU time on one thread. Competitors alternate in one process; ratios are of medians.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from torch import Tensor

from experiments.benchmarks.guidance import guided_rows, latent_rows
from experiments.benchmarks.machine import alternate, machine_line, timed, write_page
from experiments.benchmarks.model import ACTION, HIDDEN, MEMBERS, STATE, box, chain
from experiments.report.tables import Cell, Table
from layeredrl.levels import PlannerLevel
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.planners import CEM, ICEM, CEMConfig, ICEMConfig, Planner
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, WorldModel


@dataclass(frozen=True)
class PlanningBenchmark:
    """Measure the cost of planning."""

    rounds: int = 5
    """Repetitions of measurements of seconds; those of milliseconds are repeated forty times as often."""
    n_envs: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of environments planned for together."""
    output: Path = Path("experiments/results/planning_speed.md")
    """Markdown file to write."""


def reward(state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """Return a reward such as HalfCheetah's: velocity minus control cost."""
    return next_state[..., 8] - 0.1 * action.square().sum(-1)


def make_world(
    state: int, action: int, hidden: tuple[int, ...], particles: int, dtype: torch.dtype | None
) -> WorldModel:
    """Build a world model with networks of the given size and a known reward."""
    torch.manual_seed(0)
    task = TaskSpec(box(state), Box(-1, 1, (action,), np.float32), reward=reward)
    encoder = Encoder(task)
    dynamics = ProbabilisticEnsemble(
        encoder.state_space,
        encoder.context_space,
        Box(-1, 1, (action,), np.float32),
        partial(GaussianMixtureMLP, hidden=hidden),
        n_models=MEMBERS,
        n_particles_per_model=particles,
        rollout_dtype=dtype,
    )
    return WorldModel(encoder, dynamics, task).eval()


class Decider:
    """Level that plans as in a run, and the rollouts of its dynamics alone.

    Args:
        world: World model.
        planner: Planner.
        n_envs: Number of environments.
    """

    def __init__(self, world: WorldModel, planner: Planner, n_envs: int) -> None:
        self.level = PlannerLevel(world, planner, planner.action_space)
        self.n_envs = n_envs
        self.obs = torch.randn(n_envs, world.task.observation_dim)
        self.generator = torch.Generator().manual_seed(0)
        self.memory = self.level.initial_memory(n_envs)
        self.in_score = 0.0
        self.shapes: list[torch.Size] = []

    def __call__(self) -> None:
        """Decide once."""
        decision = self.level.act(self.obs, None, self.memory, explore=False, generator=self.generator)
        self.memory = decision.memory

    def rollouts(self) -> None:
        """Do only the rollouts of a decision; `share_outside` has recorded their sizes."""
        for shape in self.shapes:
            with torch.inference_mode():
                rows, candidates = self.obs.repeat_interleave(shape[1], 0), torch.zeros(shape).flatten(0, 1)
                dynamics = self.level.world.dynamics
                dynamics.rollout(
                    rows, torch.zeros(len(rows), 0), candidates, generator=self.generator, statistics=False
                )

    def share_outside(self, rounds: int) -> float:
        """Return the median share of a decision's time outside `WorldModel.score`."""
        score = self.level.world.score

        def timed_score(obs: Tensor, candidates: Tensor, **settings: Any) -> Tensor:
            self.shapes.append(candidates.shape)
            start = time.process_time()
            scores = score(obs, candidates, **settings)
            self.in_score += time.process_time() - start
            return scores

        self()
        shares = []
        with patch.object(self.level.world, "score", timed_score):
            for _ in range(rounds):
                self.in_score = 0.0
                self.shapes.clear()
                total = timed(self)
                shares.append(1 - self.in_score / total)
        return median(shares)


def main() -> None:
    """Measure and write the tables."""
    config = tyro.cli(PlanningBenchmark, prog="python -m experiments.benchmarks.planning")
    torch.set_num_threads(1)
    rows: list[list[Cell]] = []
    big = make_world(STATE, ACTION, HIDDEN, 4, None)
    space = big.task.action_space
    for n in (1, 8):  # 500 candidates, 5 iterations, horizon 30
        share = Decider(big, CEM(space, CEMConfig()), n).share_outside(config.rounds if n == 1 else 3)
        rows.append([f"share outside `score`, PETS on HalfCheetah, environments: {n}", "0.05", f"{share:.4f}"])

    config_small = ICEMConfig(horizon=12, n_samples=32, n_iterations=2, n_elites=8)
    wide = make_world(STATE, ACTION, HIDDEN, 1, None)
    for name, world in (("5 x 4 x 200, state 17", wide), ("5 x 2 x 64, state 9", make_world(9, 1, (64, 64), 1, None))):
        decider = Decider(world, ICEM(world.task.action_space, config_small), 1)
        decider.share_outside(1)
        whole, rollouts = map(median, alternate(decider, decider.rollouts, rounds=40 * config.rounds))
        measured = f"{whole / rollouts:.2f} ({1e3 * whole:.1f} over {1e3 * rollouts:.1f} ms)"
        rows.append([f"32 candidates, horizon 12, {name}: a plan over its rollouts", "1.5", measured])

    planner = CEM(space, CEMConfig(n_samples=400, n_elites=40))
    bare = chain(1600, [STATE + ACTION, *HIDDEN, 2 * STATE + 1], 30 * planner.config.n_iterations)
    plans = [Decider(make_world(STATE, ACTION, HIDDEN, 4, dtype), planner, 1) for dtype in (None, torch.bfloat16)]
    *times, reference = map(median, alternate(*plans, bare, rounds=config.rounds))
    size = "400 candidates x 5 iterations x 20 particles x 30 steps, over bare float32 `bmm`"
    for name, bound, seconds in zip(("float32", "bfloat16"), ("", "0.6"), times, strict=True):
        rows.append([f"{size}, {name}", bound, f"{seconds / reference:.2f} ({seconds:.2f} over {reference:.2f} s)"])

    rows += latent_rows("tiny", 6 * config.rounds) + latent_rows("small", 6 * config.rounds)
    rows += guided_rows(6 * config.rounds)
    icem = ICEM(space, config_small)
    each = [median(alternate(Decider(wide, icem, n), rounds=4 * config.rounds)[0]) / n for n in config.n_envs]
    tables = (
        Table("planning", "Cost of a decision", ("quantity", "expected at most", "measured"), rows),
        Table(
            "environments",
            "iCEM with 32 candidates, 2 iterations, horizon 12, 5 x 4 x 200: milliseconds per environment",
            ("environments", *map(str, config.n_envs)),
            [["ms", *(1e3 * seconds for seconds in each)]],
        ),
    )
    text = "Process CPU time on one thread. Competitors alternate in one process; ratios are of medians."
    command = "python -m experiments.benchmarks.planning"
    write_page(config.output, "Cost of planning", command, (text, *tables), machine_line(threads=1))


if __name__ == "__main__":
    main()
