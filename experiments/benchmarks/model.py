"""Measure the ensemble's speed as ratios to bare matrix products: `python -m experiments.benchmarks.model`.

The reference is a chain of `torch.bmm` calls of the network's shapes in float32, with nothing between them, under
torch's default flags. Reference and candidate alternate in one process; a ratio compares the medians (and the minima)
of process CPU time. Each number of threads has a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from matplotlib.figure import Figure
from tianshou.data import Batch
from torch import Tensor, nn

from experiments.benchmarks.machine import alternate, machine_line, write_page
from experiments.report.tables import Cell, Table
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP

MEMBERS, STATE, ACTION, HIDDEN = 5, 17, 6, (200, 200, 200, 200)


@dataclass(frozen=True)
class ModelBenchmark:
    """Measure the ensemble's speed."""

    threads: tuple[int, ...] = (1, 2)
    """Numbers of torch threads to measure with."""
    rounds: int = 15
    """Number of alternations of reference and candidate."""
    growth: bool = True
    """Measure the growth of rollout time with candidates, members and horizon, too."""
    output: Path = Path("experiments/results/model_speed.md")
    """Markdown file to write."""
    worker: bool = False
    """Print the rows for this process's threads as JSON; used by the command itself."""


def box(width: int) -> Box:
    """Return an unbounded space."""
    return Box(-np.inf, np.inf, (width,))


def make_ensemble(
    state: int,
    action: int,
    hidden: Sequence[int],
    *,
    members: int = MEMBERS,
    partial_net: Callable[..., nn.Module] | None = None,
    **settings: Any,
) -> ProbabilisticEnsemble:
    """Build an ensemble of the built-in network, or of `partial_net`."""
    torch.manual_seed(0)
    net = partial_net or partial(GaussianMixtureMLP, hidden=tuple(hidden))
    actions = Box(-1, 1, (action,))
    return ProbabilisticEnsemble(box(state), box(0), actions, net, n_models=members, **settings).eval()


class StandardNet(nn.Module):
    """Network as a user might write it: layers of torch in a Sequential."""

    def __init__(
        self, state_space: Box, context_space: Box, action_space: Box, *, hidden: Sequence[int], norm: bool
    ) -> None:
        super().__init__()
        widths = [state_space.shape[0] + context_space.shape[0] + action_space.shape[0], *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if norm else []), nn.SiLU()]
        self.state_dim = state_space.shape[0]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 2 * self.state_dim + 1))

    def forward(self, state: Tensor, context: Tensor, action: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return mean, standard deviation and termination probability."""
        mean, raw, term = self.layers(torch.cat([state, context, action], -1)).split(
            [self.state_dim, self.state_dim, 1], -1
        )
        return (mean, torch.nn.functional.softplus(raw) + 1e-3), torch.sigmoid(term).squeeze(-1)


def chain(rows: int, widths: Sequence[int], repeats: int) -> Callable[[], None]:
    """Return a function with the bare forward products of a network, `repeats` times."""
    x = torch.randn(MEMBERS, rows, widths[0])
    weights = [torch.randn(MEMBERS, a, b) for a, b in pairwise(widths)]

    def run() -> None:
        for _ in range(repeats):
            h = x
            for w in weights:
                h = torch.bmm(h, w)

    return run


def training_chain(rows: int, widths: Sequence[int]) -> Callable[[], None]:
    """Return a function with the bare products of a forward and a backward pass.

    These are the outputs, and the gradients of the weights and of all inputs but the first.
    """
    pairs = list(pairwise(widths))
    xs = [torch.randn(MEMBERS, rows, a) for a, _ in pairs]
    ws = [torch.randn(MEMBERS, a, b) for a, b in pairs]
    gs = [torch.randn(MEMBERS, rows, b) for _, b in pairs]

    def run() -> None:
        for i, (x, w, g) in enumerate(zip(xs, ws, gs, strict=True)):
            torch.bmm(x, w)
            torch.bmm(x.mT, g)
            if i:
                torch.bmm(g, w.mT)

    return run


def compare(
    name: str, bar: float, reference: Callable[[], object], run: Callable[[], object], rounds: int
) -> list[Cell]:
    """Return a row: ratios of medians and minima of process CPU time, and both medians in milliseconds."""
    ref, own = ([1e3 * x for x in times] for times in alternate(reference, run, rounds=rounds))
    return [name, bar, median(own) / median(ref), min(own) / min(ref), median(own), median(ref)]


def rows(rounds: int) -> list[list[Cell]]:
    """Return all rows, for the current number of torch threads."""
    widths = [STATE + ACTION, *HIDDEN, 2 * STATE + 1]

    def rollout(candidates: int, **settings: Any) -> Callable[[], object]:
        ensemble = make_ensemble(STATE, ACTION, HIDDEN, n_particles_per_model=4, **settings)
        state, context = torch.randn(candidates, STATE), torch.zeros(candidates, 0)
        actions = torch.rand(candidates, 30, ACTION) * 2 - 1
        return torch.no_grad()(lambda: ensemble.rollout(state, context, actions))

    big, n = chain(1600, widths, 30), 256 * MEMBERS
    learner = make_ensemble(STATE, ACTION, HIDDEN, create_optimizer=True, partition_batch=True).train()
    batch = Batch(
        state=torch.randn(n, STATE),
        context=torch.zeros(n, 0),
        act=torch.randn(n, ACTION),
        state_next=torch.randn(n, STATE),
        terminated=torch.zeros(n),
    )
    small = (128, 128)
    state, context, action = torch.randn(25_600, 2), torch.zeros(25_600, 0), torch.randn(25_600, 2)

    def log_prob(net: Callable[..., nn.Module] | None = None) -> Callable[[], object]:
        ensemble = make_ensemble(2, 2, small, partial_net=net)
        return torch.no_grad()(lambda: ensemble.get_log_prob(state, context, action, state))

    result = [
        compare("rollout, 400 candidates x 4 particles, float32", 1.0, big, rollout(400), rounds),
        compare("the same in bfloat16", 0.40, big, rollout(400, rollout_dtype=torch.bfloat16), rounds),
        compare("rollout, 1 candidate x 4 particles", 1.5, chain(4, widths, 30), rollout(1), 4 * rounds),
        compare(
            "learn, 256 rows a member", 1.35, training_chain(256, widths), lambda: learner.learn([batch]), 4 * rounds
        ),
        compare("get_log_prob, 25,600 rows, 2 x 128", 1.2, chain(25_600, [4, *small, 5], 1), log_prob(), 2 * rounds),
    ]
    for norm, label in ((False, "a user's Linear and SiLU"), (True, "a user's Linear, LayerNorm and SiLU")):
        name = f"get_log_prob, {label}, against the built-in network"
        built_in = log_prob(partial(GaussianMixtureMLP, hidden=small, layer_norm=norm))
        users = log_prob(partial(StandardNet, hidden=small, norm=norm))
        result.append(compare(name, 1.2, built_in, users, 2 * rounds))
    return result


def growth(path: Path) -> None:
    """Draw the growth of rollout time with candidates, members and horizon."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    sweeps = {
        "candidates": (1, 4, 16, 64, 256, 1024, 4096),
        "members": (1, 2, 4, 8, 16),
        "horizon": (1, 3, 10, 30, 100),
    }
    default = {"candidates": 400, "members": MEMBERS, "horizon": 30}
    for axes, (name, values) in zip(figure.subplots(1, 3), sweeps.items(), strict=True):
        seconds = []
        for value in values:
            size = {**default, name: value}
            ensemble = make_ensemble(STATE, ACTION, HIDDEN, members=size["members"], n_particles_per_model=4)
            n = size["candidates"]
            state, context = torch.randn(n, STATE), torch.zeros(n, 0)
            actions = torch.rand(n, size["horizon"], ACTION)
            rollout = torch.no_grad()(partial(ensemble.rollout, state, context, actions))
            seconds.append(alternate(rollout, rounds=1)[0][0])
        axes.loglog(values, seconds, "o-")
        axes.loglog(values, [seconds[-1] * v / values[-1] for v in values], ":", color="grey", label="linear")
        axes.set(xlabel=name, ylabel="CPU seconds a rollout")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


COLUMNS = ("operation", "expected", "ratio of medians", "ratio of minima", "ms", "reference ms")


def main() -> None:
    """Measure for each number of threads in a process of its own, and write the tables."""
    config = tyro.cli(ModelBenchmark, prog="python -m experiments.benchmarks.model")
    if config.worker:
        torch.set_num_threads(config.threads[0])
        print(json.dumps(rows(config.rounds)))
        return
    parts: list[str | Table] = [
        f"""Process CPU time, as a ratio to the bare chain of `torch.bmm` calls of the same shapes in float32 under
torch's default flags, or to the reference that the row names, measured in turns in one process. Unless stated
otherwise: {MEMBERS} members, {len(HIDDEN)} layers of {HIDDEN[0]}, state {STATE}, action {ACTION}."""
    ]
    for threads in config.threads:
        command = [sys.executable, "-m", "experiments.benchmarks.model", "--worker", "--threads", str(threads)]
        command += ["--rounds", str(config.rounds)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        parts.append(Table("model", f"{threads} thread{'s' * (threads > 1)}", COLUMNS, found))
    if config.growth:
        torch.set_num_threads(1)
        picture = config.output.with_suffix(".png")
        growth(picture)
        parts.append(f"## Growth of a rollout's time, one thread\n\n![growth]({picture.name})")
    write_page(config.output, "Speed of the ensemble", "python -m experiments.benchmarks.model", parts, machine_line())


if __name__ == "__main__":
    main()
