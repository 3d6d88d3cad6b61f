"""Measure an agent on a GPU, or on a CPU where there is none: `python -m experiments.benchmarks.device`.

Wall-clock time, with the device synchronised before and after; a measurement repeats for some seconds after a warm-up,
which includes the captures of CUDA graphs. The matrix rate is that of the device's own products of large square
matrices in the same type, and the bare products are the `torch.bmm` calls of a rollout's networks, with nothing between
them. The cart-pole runs on the CPU, the mazes on the device.
"""

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from tianshou.data import Batch
from torch import Tensor

import envs  # noqa: F401  registers the tasks
from agents.pets import PETS
from agents.recipe import Recipe
from agents.splates import SPlaTESAgent
from experiments.benchmarks.collecting import COLUMNS, CollectingBenchmark, rows
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Cell, Table
from layeredrl.collector import Collector
from layeredrl.device_collector import DeviceCollector
from layeredrl.environments import make_task, make_torch_vector_env, make_vector_env
from layeredrl.episodes import Episode, EpisodeCollector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel, PolicyLearningConfig, PolicyLevel
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEM, ICEMConfig
from layeredrl.randomness import seed_globals
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, WorldModel

STATE, ACTION = 17, 6
"""Widths of HalfCheetah's observations and actions."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured."""

    hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden widths of the ensemble's five members."""
    candidates: tuple[int, ...] = (400, 25_600)
    """Candidates of a rollout, with four particles for each member."""
    horizon: int = 30
    n_envs: tuple[int, ...] = (1, 16, 128, 1024)
    """Numbers of environments planned for together."""
    matrix: int = 8192
    """Width of the square matrices of the device's own products."""
    n_updates: int = 50
    """Policy updates of a repetition."""
    n_mazes: int = 1024
    """Number of mazes that SPlaTES learns in."""


QUICK = Sizes((16, 16), (8, 16), 3, (1, 2), 64, 3, 8)


@dataclass(frozen=True)
class DeviceBenchmark:
    """Measure an agent on a device."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device of the agent: cpu, cuda, cuda:1."""
    seconds: float = 3.0
    """Duration of each measurement."""
    limit: float = 90.0
    """Seconds after which each of the two trainings ends, solved or not."""
    quick: bool = False
    """Measure tiny sizes in some seconds, to see that everything runs."""
    output: Path = Path("experiments/results/device.md")
    """Markdown file to write."""


class Clock:
    """Measures functions on a device.

    Args:
        device: The device.
        seconds: Duration of a measurement.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __call__(self, function: Callable[[], object]) -> float:
        """Return the mean seconds of a call, after three calls."""
        for _ in range(3):
            function()
        self.wait()
        start, n = time.perf_counter(), 0
        while not n or time.perf_counter() - start < self.seconds:
            function()
            n += 1
            if n % 10 == 0:
                self.wait()  # else calls would pile up
        self.wait()
        return (time.perf_counter() - start) / n


def matrix_rate(clock: Clock, width: int, dtype: torch.dtype) -> float:
    """Return the device's own rate of products, in floating-point operations per second."""
    a, b = (torch.randn(width, width, device=clock.device, dtype=dtype) for _ in range(2))
    return 2 * width**3 / clock(lambda: a @ b)


def make_ensemble(sizes: Sizes, device: torch.device, **settings: object) -> ProbabilisticEnsemble:
    """Build an ensemble of five members with four particles each."""
    torch.manual_seed(0)
    state, context = (Box(-np.inf, np.inf, (width,)) for width in (STATE, 0))
    net = partial(GaussianMixtureMLP, hidden=sizes.hidden)
    options: dict[str, object] = {"n_models": 5, "n_particles_per_model": 4, "device": device, **settings}
    return ProbabilisticEnsemble(state, context, Box(-1, 1, (ACTION,), np.float32), net, **options).eval()


def rollouts(clock: Clock, sizes: Sizes) -> list[list[Cell]]:
    """Return the rows of rollouts: eager, captured, in bfloat16, and the bare products."""
    widths = [STATE + ACTION, *sizes.hidden, 2 * STATE + 1]
    rates = {dtype: matrix_rate(clock, sizes.matrix, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows: list[list[Cell]] = []
    for n in sizes.candidates:
        n_rows = 4 * n
        work = 2 * 5 * n_rows * sum(a * b for a, b in pairwise(widths)) * sizes.horizon
        state, context = torch.randn(n, STATE, device=clock.device), torch.zeros(n, 0, device=clock.device)
        actions = 2 * torch.rand(n, sizes.horizon, ACTION, device=clock.device) - 1

        def bare(dtype: torch.dtype, n_rows: int = n_rows) -> Callable[[], None]:
            x = torch.randn(5, n_rows, widths[0], device=clock.device, dtype=dtype)
            weights = [torch.randn(5, a, b, device=clock.device, dtype=dtype) for a, b in pairwise(widths)]

            def run() -> None:
                for _ in range(sizes.horizon):
                    h = x
                    for weight in weights:
                        h = torch.bmm(h, weight)

            return run

        for dtype, kind in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
            products = clock(bare(dtype))
            rows.append([f"bare products, {n} candidates, {kind}", 1e3 * products, work / products / rates[dtype], 1.0])
            for graphs in (False, True) if clock.device.type == "cuda" else (False,):
                model = make_ensemble(sizes, clock.device, rollout_graphs=graphs, rollout_dtype=dtype)
                seconds = clock(torch.no_grad()(partial(model.rollout, state, context, actions, statistics=False)))
                name = f"rollout, {n} candidates, {kind}, {'captured' if graphs else 'eager'}"
                rows.append([name, 1e3 * seconds, work / seconds / rates[dtype], seconds / products])
    return rows


def reward(state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """Return a reward such as HalfCheetah's: velocity minus control cost."""
    return next_state[..., 8] - 0.1 * action.square().sum(-1)


def plans(clock: Clock, sizes: Sizes) -> list[list[Cell]]:
    """Return the rows of planning with iCEM."""
    space = Box(-1.0, 1.0, (ACTION,), np.float32)
    task = TaskSpec(Box(-np.inf, np.inf, (STATE,), np.float32), space, reward=reward)
    dynamics = make_ensemble(replace(sizes, hidden=sizes.hidden[:2]), clock.device, rollout_dtype="auto")
    world = WorldModel(Encoder(task), dynamics, task).eval()
    planner = ICEM(space, ICEMConfig(horizon=sizes.horizon, n_samples=64, n_iterations=3, n_elites=8))
    level, rows = PlannerLevel(world, planner, space), []
    for n in sizes.n_envs:
        obs, memory = torch.randn(n, STATE, device=clock.device), level.initial_memory(n)
        generator = torch.Generator(clock.device).manual_seed(0)
        seconds = clock(partial(level.act, obs, None, memory, explore=False, generator=generator))
        rows.append([f"{n} environments", 1e3 * seconds, n / seconds])
    return rows


def updates(clock: Clock, sizes: Sizes) -> list[list[Cell]]:
    """Return the rows of updates of SAC, two layers of 256, batches of 256."""
    rows: list[list[Cell]] = []
    obs_space, space = Box(-np.inf, np.inf, (STATE,), np.float32), Box(-1.0, 1.0, (ACTION,), np.float32)
    for graphs in (False, True) if clock.device.type == "cuda" else (False,):
        torch.manual_seed(0)
        algorithm = SACConfig().build(STATE, space, clock.device)
        if not graphs:
            algorithm.graphs = None
        level = PolicyLevel(algorithm, space, n_envs=1, learning=PolicyLearningConfig(n_random_steps=0))
        rng = np.random.default_rng(0)
        for i in range(300):
            obs, obs_next = rng.normal(size=(2, 1, *obs_space.shape)).astype(np.float32)
            over, one = np.zeros(1, bool), np.ones(1, np.int64)
            row = Batch(obs=obs, act=rng.uniform(-1, 1, (1, ACTION)).astype(np.float32), rew=rng.normal(size=1))
            row.update(terminated=over, truncated=np.full(1, i == 299), obs_next=obs_next, info=Batch(duration=one))
            level.replay.add(row, np.arange(1))
        algorithm.train()

        def run(level: PolicyLevel = level) -> None:
            level._updates(sizes.n_updates)
            level._settle()

        seconds = clock(run) / sizes.n_updates
        rows.append([f"SAC, {'captured' if graphs else 'eager'}", 1e3 * seconds, 1 / seconds])
    return rows


def train(
    config: Recipe, env_id: str, n_envs: int, device: torch.device, *, limit: float, there: bool, done: Callable
) -> list[Cell]:
    """Train an agent from its start until it is done; return environment steps, seconds, their ratio, and success."""
    seed_globals(0)
    agent: Hierarchy = config.build(make_task(env_id, n_envs), device, seed=0)
    collector: EpisodeCollector
    if there:
        collector = DeviceCollector(make_torch_vector_env(env_id, n_envs, device), agent, seed=0)
    else:
        collector = Collector(make_vector_env(env_id, n_envs), agent, seed=0)
    start, episodes, solved = time.perf_counter(), [], False
    try:
        while not solved and time.perf_counter() - start < limit:
            episodes += collector.step(explore=True)
            agent.learn(collector.n_total_env_steps)
            solved = done(episodes)
    finally:
        collector.close()
    seconds = time.perf_counter() - start
    steps = collector.n_total_env_steps
    return [steps, seconds, steps / seconds, "yes" if solved else "no"]


def balanced(episodes: list[Episode]) -> bool:
    """Return True once an episode of cart-pole has lasted for 200 steps."""
    return bool(episodes) and episodes[-1].episode_return >= 200


def arrived(episodes: list[Episode]) -> bool:
    """Return True once 95 of the last 100 episodes of a maze were successful."""
    last = episodes[-100:]
    return len(last) == 100 and sum(bool(episode.success) for episode in last) >= 95


def gpu_line() -> str:
    """Return what `nvidia-smi` says of the GPUs; empty where there are none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Measure and write the page."""
    config = tyro.cli(DeviceBenchmark, prog="python -m experiments.benchmarks.device")
    sizes, device = QUICK if config.quick else Sizes(), torch.device(config.device)
    clock = Clock(device, 0.01 if config.quick else config.seconds)
    limit = 0.5 if config.quick else config.limit
    preset = "debug" if config.quick else "demo"
    cartpole = train(PETS.preset(preset), "ContinuousCartPole-v0", 1, device, limit=limit, there=False, done=balanced)
    maze = train(
        SPlaTESAgent.preset(preset), "Maze2D-Medium-v0", sizes.n_mazes, device, limit=limit, there=True, done=arrived
    )
    turns = {"n_turns": 2, "n_steps": 4} if config.quick else {}
    collecting = rows(CollectingBenchmark(config.device, sizes.n_mazes, **turns))
    tables = [
        Table(
            "rollouts",
            "Rollouts",
            ("what", "ms", "share of the matrix rate", "time : bare products"),
            rollouts(clock, sizes),
        ),
        Table("plans", "Plans of iCEM", ("what", "ms", "plans/s"), plans(clock, sizes)),
        Table("updates", "Policy updates", ("what", "ms", "updates/s"), updates(clock, sizes)),
        Table("collecting", "Collecting in mazes", COLUMNS, collecting),
        Table(
            "training",
            "Training",
            ("what", "environment steps", "seconds", "steps/s", "solved"),
            [
                ["PETS, cart-pole, until an episode of 200 steps", *cartpole],
                [f"SPlaTES, {sizes.n_mazes} mazes, until 95 of 100 episodes succeed", *maze],
            ],
        ),
    ]
    text = __doc__.split("\n\n")[1] if __doc__ else ""
    quick = "Tiny sizes (`--quick`), which show that everything runs, not how fast; not measured on a GPU yet."
    kind = quick if config.quick else ""
    found = gpu_line()
    parts = [text, *filter(None, [kind, f"Device: {device}. {found}".strip()]), *tables]
    command = f"python -m experiments.benchmarks.device{' --quick' if config.quick else ''}"
    write_page(config.output, "Speed on a device", command, parts, machine_line("gymnasium"))


if __name__ == "__main__":
    main()
