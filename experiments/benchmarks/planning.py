"""What a plan costs besides its rollouts: `python -m experiments.benchmarks.planning`.

Process CPU time on one thread. What is compared alternates in one process; ratios are of medians.
"""

import time
from collections.abc import Callable
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

from experiments.benchmarks.machine import machine_line
from experiments.benchmarks.model import ACTION, HIDDEN, MEMBERS, STATE, box, chain
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
    """Repetitions of what takes seconds; what takes milliseconds is repeated forty times as often."""
    n_envs: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Environments planned for together."""
    output: Path = Path("experiments/results/planning_speed.md")
    """Where the table goes."""


def reward(state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """HalfCheetah's kind of reward: a velocity, less the cost of control."""
    return next_state[..., 8] - 0.1 * action.square().sum(-1)


def make_world(
    state: int, action: int, hidden: tuple[int, ...], particles: int, dtype: torch.dtype | None
) -> WorldModel:
    """A world model with networks of the given size and a known reward."""
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


def timed(function: Callable[[], object]) -> float:
    """Process CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


class Decider:
    """A level that plans for some environments, as it does in a run, and the rollouts of the dynamics alone.

    Args:
        world: Scores.
        planner: Plans.
        n_envs: For how many environments.
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
        """The rollouts that a decision takes, and nothing else; `share_outside` has seen their sizes."""
        for shape in self.shapes:
            with torch.inference_mode():
                rows, candidates = self.obs.repeat_interleave(shape[1], 0), torch.zeros(shape).flatten(0, 1)
                dynamics = self.level.world.dynamics
                dynamics.rollout(
                    rows, torch.zeros(len(rows), 0), candidates, generator=self.generator, statistics=False
                )

    def share_outside(self, rounds: int) -> float:
        """Median share of a decision's time that is not spent in `WorldModel.score`."""
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


def alternate(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median seconds of functions that take turns."""
    for function in functions:
        function()
    times = [[timed(function) for function in functions] for _ in range(rounds)]
    return [median(column) for column in zip(*times, strict=True)]


def main() -> None:
    """Measure and write the table."""
    config = tyro.cli(PlanningBenchmark, prog="python -m experiments.benchmarks.planning")
    torch.set_num_threads(1)
    lines = [
        "# What planning costs",
        "",
        __doc__.split("\n\n")[1].strip().replace("\n", " ") if __doc__ else "",
        "",
        "    python -m experiments.benchmarks.planning",
        "",
        "| what | wanted | measured |",
        "|---|---|---|",
    ]

    def report(name: str, wanted: str, measured: str) -> None:
        lines.append(f"| {name} | {wanted} | {measured} |")
        print(lines[-1], flush=True)

    big = make_world(STATE, ACTION, HIDDEN, 4, None)
    space = big.task.action_space
    pets = CEM(space, CEMConfig())  # 500 candidates, 5 iterations, horizon 30
    for n in (1, 8):
        share = Decider(big, pets, n).share_outside(config.rounds if n == 1 else 3)
        report(f"share outside `score`, PETS on HalfCheetah, {n} environment{'s' * (n > 1)}", "0.05", f"{share:.4f}")

    for name, world in (
        ("5 x 4 x 200, state 17", make_world(STATE, ACTION, HIDDEN, 1, None)),
        ("5 x 2 x 64, state 9", make_world(9, 1, (64, 64), 1, None)),
    ):
        small = ICEM(world.task.action_space, ICEMConfig(horizon=12, n_samples=32, n_iterations=2, n_elites=8))
        decider = Decider(world, small, 1)
        decider.share_outside(1)
        whole, rollouts = alternate(decider, decider.rollouts, rounds=40 * config.rounds)
        report(
            f"32 candidates, horizon 12, {name}: a plan over its rollouts",
            "1.5",
            f"{whole / rollouts:.2f} ({1e3 * whole:.1f} over {1e3 * rollouts:.1f} ms)",
        )

    planner = CEM(space, CEMConfig(n_samples=400, n_elites=40))
    widths = [STATE + ACTION, *HIDDEN, 2 * STATE + 1]
    bare = chain(1600, widths, 30 * planner.config.n_iterations)
    plans = [Decider(make_world(STATE, ACTION, HIDDEN, 4, dtype), planner, 1) for dtype in (None, torch.bfloat16)]
    float32, bfloat16, reference = alternate(*plans, bare, rounds=config.rounds)
    size = "400 candidates x 5 iterations x 20 particles x 30 steps, over bare float32 `bmm`"
    report(f"{size}, float32", "", f"{float32 / reference:.2f} ({float32:.2f} over {reference:.2f} s)")
    report(f"{size}, bfloat16", "0.6", f"{bfloat16 / reference:.2f} ({bfloat16:.2f} over {reference:.2f} s)")

    lines += [
        "",
        "iCEM with 32 candidates, 2 iterations, horizon 12, 5 x 4 x 200: milliseconds per environment",
        "",
        "| environments | " + " | ".join(map(str, config.n_envs)) + " |",
        "|---" * (len(config.n_envs) + 1) + "|",
    ]
    world = make_world(STATE, ACTION, HIDDEN, 1, None)
    icem = ICEM(space, ICEMConfig(horizon=12, n_samples=32, n_iterations=2, n_elites=8))
    seconds = [alternate(Decider(world, icem, n), rounds=4 * config.rounds)[0] / n for n in config.n_envs]
    lines.append("| ms | " + " | ".join(f"{1e3 * s:.2f}" for s in seconds) + " |")
    print(lines[-1], flush=True)
    lines += ["", machine_line(threads=1), ""]
    config.output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
