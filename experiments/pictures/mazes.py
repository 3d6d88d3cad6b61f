"""Plans in mazes, and the layouts of mazes."""

import contextlib
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs.maze2d_drawing import draw_walls
from envs.maze2d_layouts import Layout
from experiments.run.building import make_envs_here
from experiments.run.config import RunConfig
from layeredrl.environments import EnvConfig, make_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.models.diagnostics.figures import BLUE, ORANGE
from layeredrl.task import GOAL_KEY


def layout_of(env: str | EnvConfig) -> Layout | None:
    """Return the layout of a maze; None for any other environment."""
    made = make_env(env)
    layout = getattr(made.unwrapped, "layout", None)
    made.close()
    return layout if isinstance(layout, Layout) else None


@torch.no_grad()
def make_plans(
    config: RunConfig[Any], agent: Hierarchy, *, n: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Plan without exploration at the beginning of n episodes.

    Args:
        config: Settings of the run.
        agent: Agent whose top level plans in a maze.
        n: Number of episodes.
        seed: Random seed of the episodes and of planning.

    Returns:
        States of the particles of each plan, (n, P, T, S), and goals of the episodes, (n, G).
    """
    level, task = cast(PlannerLevel, agent.levels[0]), agent.task
    seeds: Any = [seed + i for i in range(n)]  # the base class's annotation knows no lists
    with contextlib.closing(make_envs_here(config, n)) as env:
        obs = torch.as_tensor(task.flatten(env.reset(seed=seeds)[0]), device=agent.device)
    generator = torch.Generator(agent.device).manual_seed(seed)
    chosen = level.plan(obs, level.initial_memory(n), generator).actions
    states = level.world.rollout(obs, chosen, generator=generator, statistics=False).state
    return states.flatten(1, 2).cpu().numpy(), obs[:, task.slices[GOAL_KEY]].cpu().numpy()


def draw_plans(states: NDArray[np.float32], goals: NDArray[np.float32], title: str, layout: Layout) -> Figure:
    """Draw plans in a maze, one panel each: particles, their mean, start and goal.

    Args:
        states: States of particles, (n, P, T, S); x and y first, in metres.
        goals: Goals, x and y in metres, (n, 2).
        title: Title of the figure.
        layout: Layout of the maze.
    """
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    n_columns = int(np.ceil(np.sqrt(len(states))))
    panels = figure.subplots(-(-len(states) // n_columns), n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, particles, goal in zip(panels, states, goals, strict=False):
        draw_walls(axis, layout)
        for i, path in enumerate(particles):
            axis.plot(*path[:, :2].T, color=ORANGE, lw=0.6, alpha=0.5, label=None if i else "particles")
        axis.plot(*particles.mean(0)[:, :2].T, ".-", color=BLUE, lw=1.2, ms=3, label="mean")
        axis.plot(*particles[0, 0, :2], "o", color="black", ms=4, label="start")
        axis.plot(*goal[:2], "*", color="black", ms=9, label="goal")
        axis.set(xlim=(0, layout.size[0]), ylim=(layout.size[1], 0))
        axis.label_outer()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
