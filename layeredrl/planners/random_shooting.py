"""Random shooting: best of many sequences of uniformly random actions (Nagabandi et al. 2018, arXiv 1708.02596)."""

from dataclasses import dataclass

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_counts
from layeredrl.planners.families import make_search
from layeredrl.planners.planner import Contest, Plan, Planner, ScoreFunction


@dataclass(frozen=True)
class RandomShootingConfig:
    """Settings of random shooting; the defaults are those of PETS's comparison on HalfCheetah."""

    horizon: int = 30
    """Number of actions planned ahead."""
    n_samples: int = 2500
    """Number of candidates."""

    def __post_init__(self) -> None:
        require_counts(self, horizon=1, n_samples=1)


class RandomShooting(Planner):
    """Random shooting for a batch of environments; its warm starts are empty.

    Args:
        action_space: Box of shape (A,) with finite bounds, Discrete or MultiDiscrete.
        config: Settings.
    """

    def __init__(self, action_space: spaces.Space[object], config: RandomShootingConfig) -> None:
        super().__init__(action_space, config.horizon)
        self.config = config
        self.search = make_search(action_space, config.horizon, init_std=1.0, uniform_share=1.0)

    def initial_warm_start(self, n_envs: int, device: torch.device) -> Batch:
        return Batch()

    def _plan(
        self,
        score: ScoreFunction,
        n_envs: int,
        warm_start: Batch,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> Plan:
        candidates = action_spaces.uniform(self.action_space, (n_envs, self.config.n_samples, self.horizon), generator)
        best, scores = Contest(score, self.search, proposals).best(candidates, 1)
        return Plan(actions=best[:, 0], score=scores[:, 0], warm_start=Batch(), best_scores=scores.mT)
