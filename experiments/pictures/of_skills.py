"""Pictures of skills and plans while they are learned: where skills lead, where one has been, what is planned."""

import contextlib
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs.maze2d_drawing import draw_walls
from envs.maze2d_layouts import Layout
from experiments.plot_skills import (
    PlotSkillsConfig,
    carrying_out,
    draw_fan,
    label_states,
    layout_of,
    make_envs_here,
    make_fan,
    states_of,
)
from experiments.run.config import RunConfig
from experiments.run.parts import PICTURES
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.loggers import Logger
from layeredrl.models.diagnostics.figures import BLUE, ORANGE
from layeredrl.task import GOAL_KEY

MAX_STATES = 20_000  # a histogram of more looks the same
SEED = 3_000_000  # far from those of training and evaluation; the same for all pictures of a run, to be compared


class SkillPictures:
    """Draws what an agent has learned of skills, and what it plans in a maze, and logs that.

    The agent, and the randomness that it draws from, stay as they are. What cannot be drawn is told of once, and does
    not stop the training. Of agents without skills, and outside mazes without a planner, there is nothing to draw.

    Args:
        config: Settings of the run.
        agent: The one that is trained.
        folder: Of the run; the pictures go to `pictures/` there.
        logger: Gets them.
    """

    def __init__(self, config: RunConfig[Any], agent: Hierarchy, folder: Path, logger: Logger) -> None:
        self.config, self.agent, self.folder, self.logger = config, agent, folder / PICTURES, logger
        self.warned: set[str] = set()

    def __call__(self, n_total_env_steps: int) -> None:
        """Draw all that there is to draw after so many environment steps."""
        for name, draw in {"skill/fan": self._fan, "skill/coverage": self._coverage, "plan/maze": self._plan}.items():
            try:
                figure = draw(f"{self.config.agent} on {self.config.env}, {n_total_env_steps} steps")
                if figure is not None:
                    path = self.folder / f"{name.replace('/', '-')}-{n_total_env_steps:09d}.png"
                    self.folder.mkdir(exist_ok=True)
                    figure.savefig(path, dpi=120)
                    self.logger.log_figure(name, path, n_total_env_steps)
            except Exception as error:  # of environments, matplotlib or the disk; no picture is worth the training
                if name not in self.warned:
                    told = f"the picture {name} could not be drawn, training goes on: {type(error).__name__}: {error}"
                    warnings.warn(told, RuntimeWarning, stacklevel=2)
                self.warned.add(name)

    def _fan(self, title: str) -> Figure | None:
        """Where skills lead from common starts, and where the model sees their ends."""
        if not carrying_out(self.agent):
            return None
        # Short walks, because this is done often.
        settings = PlotSkillsConfig(self.folder, starts=4, skills=16, walk=4, seed=SEED)
        return draw_fan(make_fan(self.config, self.agent, settings), title, self._layout())

    def _coverage(self, title: str) -> Figure | None:
        """Where the agent has been."""
        levels = carrying_out(self.agent)
        replay = levels[-1].replay if levels else None
        if not replay:
            return None
        indices = replay.buffer.sample_indices(0)  # all of them, without a draw
        some = indices[np.linspace(0, len(indices) - 1, min(len(indices), MAX_STATES)).astype(np.int64)]
        states, in_place = states_of(self.agent)
        obs = torch.as_tensor(replay.column("obs_next", some), device=self.agent.device)
        with torch.no_grad():
            visited = states(obs).cpu().numpy()
        return draw_coverage(visited, title, self._layout() if in_place else None)

    def _plan(self, title: str) -> Figure | None:
        """What the planner has in mind at the beginning of episodes in a maze."""
        top, layout = self.agent.levels[0], self._layout()
        if not isinstance(top, PlannerLevel) or layout is None or not states_of(self.agent)[1]:
            return None
        return draw_plans(*make_plans(self.config, self.agent, n=4), title, layout)

    def _layout(self) -> Layout | None:
        return layout_of(self.config.env)


def draw_coverage(visited: NDArray[np.float32], title: str, layout: Layout | None) -> Figure:
    """How often which states were visited: two dimensions as a map, one as a histogram.

    Args:
        visited: States, (N, S); the first two dimensions are drawn.
        title: Above the picture.
        layout: Of the maze in which they are places; None if they are none.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axis = figure.subplots()
    if visited.shape[1] == 1:
        axis.hist(visited[:, 0], bins=80, color=BLUE)
        axis.set(xlabel="state 0", ylabel="visits")
    else:
        label_states(axis, visited.shape[1], layout)
        *_, cells = axis.hist2d(visited[:, 0], visited[:, 1], bins=80, cmin=1, norm=LogNorm(), cmap="viridis")
        figure.colorbar(cells, ax=axis, label=f"visits, of {len(visited)} states", shrink=0.8)
    axis.set_title(title)
    return figure


@torch.no_grad()
def make_plans(config: RunConfig[Any], agent: Hierarchy, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Plan without exploration at the beginning of n episodes.

    Returns:
        States of the particles of each plan, (n, P, T, S), and where the episodes' goals are, (n, G).
    """
    level, task = cast(PlannerLevel, agent.levels[0]), agent.task
    seeds: Any = [SEED + i for i in range(n)]  # the base class's annotation knows no lists
    with contextlib.closing(make_envs_here(config, n)) as env:
        obs = torch.as_tensor(task.flatten(env.reset(seed=seeds)[0]), device=agent.device)
    generator = torch.Generator(agent.device).manual_seed(SEED)
    chosen = level.plan(obs, level.initial_memory(n), generator).actions
    states = level.world.rollout(obs, chosen, generator=generator, statistics=False).state
    return states.flatten(1, 2).cpu().numpy(), obs[:, task.slices[GOAL_KEY]].cpu().numpy()


def draw_plans(states: NDArray[np.float32], goals: NDArray[np.float32], title: str, layout: Layout) -> Figure:
    """Plans in a maze, a panel for each: particles, their mean, start and goal.

    Args:
        states: Of particles, (n, P, T, S); x and y first.
        goals: x and y, (n, 2).
        title: Above the picture.
        layout: The maze.
    """
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    n_columns = int(np.ceil(np.sqrt(len(states))))
    panels = figure.subplots(-(-len(states) // n_columns), n_columns, squeeze=False).ravel()
    for axis, particles, goal in zip(panels, states, goals, strict=False):
        draw_walls(axis, layout)
        for way in particles:
            axis.plot(*way[:, :2].T, color=ORANGE, lw=0.6, alpha=0.5)
        axis.plot(*particles.mean(0)[:, :2].T, ".-", color=BLUE, lw=1.2, ms=3)
        axis.plot(*particles[0, 0, :2], "o", color="black", ms=4)
        axis.plot(*goal[:2], "*", color="black", ms=9)
        axis.set(xlabel="", ylabel="", xticks=[], yticks=[], xlim=(0, layout.size[0]), ylim=(layout.size[1], 0))
    figure.suptitle(title, fontsize=10)
    return figure
