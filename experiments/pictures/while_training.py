"""Pictures of skills and plans during training: where skills lead, which states were visited, what is planned."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.pictures.coverage import draw_coverage
from experiments.pictures.fans import FanSettings, draw_fan, make_fan
from experiments.pictures.mazes import draw_plans, layout_of, make_plans
from experiments.pictures.states import levels_from_skills, states_of
from experiments.run.config import RunConfig
from experiments.run.folder import PICTURES
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.loggers import Logger

MAX_STATES = 20_000  # a histogram of more looks the same
SEED = 3_000_000  # far from those of training and evaluation; the same for all pictures of a run, to be compared
FAN = FanSettings(starts=4, skills=16, walk=4, seed=SEED)  # short walks, because fans are drawn often


class SkillPictures:
    """Draws an agent's skills, and its plans in a maze, and logs the pictures.

    The agent and its random generators are left unchanged. A picture that cannot be drawn causes one warning and does
    not stop the training. Nothing is drawn of agents without skills, and without a planner in a maze.

    Args:
        config: Settings of the run.
        agent: Agent in training.
        folder: Folder of the run; the pictures are written to `pictures/` there.
        logger: Logger of the pictures.
    """

    def __init__(self, config: RunConfig[Any], agent: Hierarchy, folder: Path, logger: Logger) -> None:
        self.config, self.agent, self.folder, self.logger = config, agent, folder / PICTURES, logger
        self.warned: set[str] = set()

    def __call__(self, n_total_env_steps: int) -> None:
        """Draw all pictures after this number of environment steps."""
        for name, draw in {"skill/fan": self._fan, "skill/coverage": self._coverage, "plan/maze": self._plan}.items():
            try:
                figure = draw(f"{self.config.agent} on {self.config.env}, {n_total_env_steps} environment steps")
                if figure is not None:
                    path = self.folder / f"{name.replace('/', '-')}-{n_total_env_steps:09d}.png"
                    self.folder.mkdir(exist_ok=True)
                    figure.savefig(path, dpi=120)
                    self.logger.log_figure(name, path, n_total_env_steps)
            except Exception as error:  # of environments, matplotlib or the disk; no picture is worth the training
                if name not in self.warned:
                    message = f"{name} could not be drawn, training goes on: {type(error).__name__}: {error}"
                    warnings.warn(f"the picture {message}", RuntimeWarning, stacklevel=2)
                self.warned.add(name)

    def _fan(self, title: str) -> Figure | None:
        """Draw where skills lead from common starts, and their ends as the model predicts them."""
        if not levels_from_skills(self.agent):
            return None
        return draw_fan(make_fan(self.config, self.agent, FAN), title, layout_of(self.config.environment))

    def _coverage(self, title: str) -> Figure | None:
        """Draw the visited states in the replay of the lowest level below skills."""
        levels = levels_from_skills(self.agent)
        replay = levels[-1].replay if levels else None
        if not replay:
            return None
        indices = replay.indices()  # all of them, without a random draw
        some = indices[np.linspace(0, len(indices) - 1, min(len(indices), MAX_STATES)).astype(np.int64)]
        states = states_of(self.agent)
        obs = torch.as_tensor(replay.column("obs_next", some), device=self.agent.device)
        with torch.no_grad():
            visited = states.encode(obs).cpu().numpy()
        return draw_coverage(
            visited, states.names, title, layout_of(self.config.environment) if states.in_place else None
        )

    def _plan(self, title: str) -> Figure | None:
        """Draw the planner's plans at the beginning of episodes in a maze."""
        top, layout = self.agent.levels[0], layout_of(self.config.environment)
        if not isinstance(top, PlannerLevel) or layout is None or not states_of(self.agent).in_place:
            return None
        return draw_plans(*make_plans(self.config, self.agent, n=4, seed=SEED), title, layout)
