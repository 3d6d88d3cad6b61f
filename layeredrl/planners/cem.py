"""Cross-entropy method as in PETS (Chua et al. 2018, arXiv 1805.12114, section 5)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_number
from layeredrl.planners.families import make_search, require_search_settings
from layeredrl.planners.planner import Contest, Plan, Planner, ScoreFunction, shift
from layeredrl.planners.search import where


@dataclass(frozen=True)
class CEMConfig:
    """Settings of the cross-entropy method; the defaults are those of PETS on HalfCheetah."""

    horizon: int = 30
    """Number of actions planned ahead."""
    n_samples: int = 500
    """Number of candidates per iteration."""
    n_iterations: int = 5
    """Number of rounds of sampling and refitting per decision, at most."""
    n_elites: int = 50
    """Number of best candidates that the distribution is refitted to."""
    momentum: float = 0.1
    """Weight of the old mean and variance in a refit."""
    init_std: float = 0.5
    """Initial standard deviation, in units of half the action range."""
    uniform_share: float = 0.5
    """Discrete actions: weight of the uniform distribution in the initial probabilities of a decision."""
    stop_variance: float = 0.001
    """Largest variance of an action at which an environment's search stops."""
    execute: Literal["best", "mean"] = "mean"
    """Chosen sequence: the best candidate of the last iteration, or the final mean (the likeliest choices)."""

    def __post_init__(self) -> None:
        require_search_settings(self)
        require_number("stop_variance", self.stop_variance, 0, math.inf)
        require_choice("execute", self.execute, ("best", "mean"))


class CEM(Planner):
    """Cross-entropy method for a batch of environments.

    Args:
        action_space: Box of shape (A,) with finite bounds, Discrete or MultiDiscrete.
        config: Settings.
    """

    ends_with_std = True

    def __init__(self, action_space: spaces.Space[object], config: CEMConfig) -> None:
        super().__init__(action_space, config.horizon)
        self.config = config
        self.search = make_search(
            action_space,
            config.horizon,
            init_std=config.init_std,
            uniform_share=config.uniform_share,
            truncate=True,
        )

    def initial_warm_start(self, n_envs: int, device: torch.device) -> Batch:
        return Batch(center=self.search.initial_center(n_envs, device))

    def _plan(
        self,
        score: ScoreFunction,
        n_envs: int,
        warm_start: Batch,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> Plan:
        config, search = self.config, self.search
        belief = search.begin(warm_start.center)
        best = search.sequence(belief.center)
        searching = torch.ones(n_envs, dtype=torch.bool, device=best.device)
        best_scores: list[Tensor] = []
        contest = Contest(score, search, proposals)
        for i in range(config.n_iterations):
            if i:
                searching = search.largest_variance(belief) > config.stop_variance
                # On a GPU reading the values would synchronise; converged environments are frozen instead.
                if best.device.type == "cpu" and not searching.any():
                    best_scores += [best_scores[-1]] * (config.n_iterations - i)
                    break
            elites, scores = contest.best(search.sample(belief, config.n_samples, generator), config.n_elites)
            best_scores.append(torch.where(searching, scores[:, 0], best_scores[-1]) if i else scores[:, 0])
            refit = searching & (scores[:, 0] > -torch.inf)
            belief = where(refit, search.refit(belief, elites, None, config.momentum), belief)
            best = torch.where(refit[:, None, None], elites[:, 0], best)
        last = search.initial_center(n_envs, generator.device)[:, -1]  # PETS: the middle of the range
        return Plan(
            actions=best if config.execute == "best" else search.sequence(belief.center),
            score=best_scores[-1],
            warm_start=Batch(center=shift(belief.center, last)),
            best_scores=torch.stack(best_scores),
            std=None if belief.std is None else belief.std[:, 0],
        )
