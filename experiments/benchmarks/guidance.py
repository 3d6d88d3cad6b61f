"""Cost of planning in a latent model and of guided planning, over the bare matrix products of their networks."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from tianshou.data import Batch

from agents.loop import LOOP
from agents.pets import PETS
from agents.tdmpc2 import TDMPC2
from experiments.benchmarks.machine import alternate
from experiments.benchmarks.model import ACTION, STATE, box
from experiments.report.tables import Cell
from layeredrl.levels import GuidedLevel, LatentLevel, Level
from layeredrl.planners import MPPI
from layeredrl.task import TaskSpec
from layeredrl.world_model import LatentConfig
from layeredrl.world_model.latent import Size


class Products(NamedTuple):
    """Matrix products of some passes through a network."""

    widths: tuple[int, ...]
    rows: int
    members: int = 1
    repeats: int = 1
    """Number of such passes, one after the other."""
    backward: bool = False
    """If True, with the gradients of weights and inputs."""


def bare(products: Iterable[Products]) -> Callable[[], None]:
    """Return a function that does these products and nothing else."""
    chains = []
    for p in products:
        xs = [torch.randn(p.members, p.rows, a) for a in p.widths[:-1]]
        weights = [torch.randn(p.members, a, b) for a, b in pairwise(p.widths)]
        gradients = [torch.randn(p.members, p.rows, b) for b in p.widths[1:]]
        chains.append((p, [*zip(xs, weights, gradients, strict=True)]))

    def run() -> None:
        for p, layers in chains:
            for _ in range(p.repeats):
                for x, weight, gradient in layers:
                    torch.bmm(x, weight)
                    if p.backward:
                        torch.bmm(x.mT, gradient)
                        torch.bmm(gradient, weight.mT)

    return run


def task() -> TaskSpec:
    """A task of HalfCheetah's size."""
    return TaskSpec(box(STATE), Box(-1, 1, (ACTION,), np.float32))


def deciding(level: Level) -> Callable[[], None]:
    """Return a function that decides once for an environment, each time from where it was before."""
    obs, generator = torch.randn(1, STATE), torch.Generator().manual_seed(0)
    memory = level.initial_memory(1)

    def decide() -> None:
        nonlocal memory
        memory = level.act(obs, None, memory, explore=False, generator=generator).memory

    return decide


def latent_level(size: Size) -> LatentLevel:
    """The level of `tdmpc2` of a size, without terminations."""
    torch.manual_seed(0)
    recipe = TDMPC2.preset(size, latent=LatentConfig.of(size))
    level = recipe.build(task(), torch.device("cpu"), seed=0).levels[0]
    assert isinstance(level, LatentLevel)
    return level


def latent_rows(size: Size, rounds: int) -> list[list[Cell]]:
    """Rows of the table: a decision and an update of `tdmpc2`."""
    level = latent_level(size)
    config, planner = level.world.config, level.planner
    assert isinstance(planner, MPPI)
    mppi = planner.config
    s, joint, hidden, bins = config.latent_dim, config.latent_dim + ACTION, config.hidden, config.n_bins
    encoder, horizon = (STATE, *config.encoder_hidden, s), planner.horizon
    dynamics, heads, actor = (joint, *hidden, s), (joint, *hidden, bins), (s, *hidden, 2 * ACTION)
    k, first = level.n_proposals, mppi.n_samples + level.n_proposals
    decision = [Products(encoder, 1), Products(actor, k, repeats=horizon)]
    decision.append(Products(dynamics, k, repeats=horizon - 1))
    for n, repeats in ((first, 1), (mppi.n_samples, mppi.n_iterations - 1)):
        decision += [
            Products(dynamics, n, repeats=repeats * horizon),
            Products(heads, n * horizon, repeats=repeats),
            Products(actor, n, repeats=repeats),
            Products(heads, n, members=2, repeats=repeats),
        ]
    n = level.config.batch_size
    many = n * level.config.horizon
    update = [
        Products(encoder, many),
        Products(actor, many),
        Products(heads, many, members=2),
        Products(encoder, n, backward=True),
        Products(dynamics, n, repeats=level.config.horizon, backward=True),
        Products(heads, many, backward=True),
        Products(heads, many, members=config.n_critics, backward=True),
        Products(actor, many + n, backward=True),
        Products(heads, many + n, members=2, repeats=2),  # forwards, and the gradients of inputs
    ]
    batch = _subsequences(level.config.horizon, n)
    rows: list[list[Cell]] = []
    for name, bound, run, products in (
        ("a decision", "1.5", deciding(level), decision),
        (f"an update, batch of {n}", "1.6", lambda: level.latent.update(batch), update),
    ):
        rows.append([f"tdmpc2, size {size}: {name} over bare products", bound, _ratio(run, bare(products), rounds)])
    return rows


def guided_rows(rounds: int) -> list[list[Cell]]:
    """Rows of the table: a decision of `loop`, over one without guidance."""
    torch.manual_seed(0)
    recipe = LOOP()
    level = recipe.build(task(), torch.device("cpu"), seed=0).levels[0]
    assert isinstance(level, GuidedLevel)
    level.policy.reward_scale, level.policy.n_updates = 1.0, 1  # as after the first fit
    plain = PETS().build(task(), torch.device("cpu"), seed=0).levels[0]
    guided, alone = map(median, alternate(deciding(level), deciding(plain), rounds=rounds))
    measured = f"{guided / alone:.2f} ({1e3 * guided:.1f} over {1e3 * alone:.1f} ms)"
    horizon = recipe.planner.icem.horizon
    return [[f"loop: a decision, horizon {horizon}, over one without guidance", "", measured]]


def _ratio(run: Callable[[], object], products: Callable[[], object], rounds: int) -> str:
    whole, least = map(median, alternate(run, products, rounds=rounds))
    return f"{whole / least:.2f} ({1e3 * whole:.1f} over {1e3 * least:.1f} ms)"


def _subsequences(length: int, n: int) -> Batch:
    return Batch(
        obs=torch.randn(length, n, STATE),
        obs_next=torch.randn(length, n, STATE),
        act=torch.rand(length, n, ACTION) * 2 - 1,
        rew=torch.rand(length, n),
        terminated=torch.zeros(length, n, dtype=torch.bool),
        valid=torch.ones(length, n, dtype=torch.bool),
    )
