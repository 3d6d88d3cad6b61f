"""The cross-entropy method as PETS uses it (Chua et al. 2018, arXiv 1805.12114, section 5)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_counts, require_number
from layeredrl.planners.planner import Plan, Planner, ScoreFunction, best_first, evaluate, shift

CUT = 2.0
"""Samples are cut off at this many standard deviations."""


@dataclass(frozen=True)
class CEMConfig:
    """Settings of the cross-entropy method; the defaults are those of PETS on HalfCheetah."""

    horizon: int = 30
    """Actions that are planned ahead."""
    n_samples: int = 500
    """Candidates of an iteration."""
    n_iterations: int = 5
    """Rounds of sampling and refitting for each decision, at the most."""
    n_elites: int = 50
    """Best candidates that the distribution is refitted to."""
    momentum: float = 0.1
    """Weight of the old mean and variance in a refit."""
    init_std: float = 0.5
    """Initial standard deviation, in units of half the action range."""
    stop_variance: float = 0.001
    """An environment's search stops once no action's variance exceeds this."""
    execute: Literal["best", "mean"] = "mean"
    """Which sequence is chosen: the best candidate of the last iteration, or the final mean."""

    def __post_init__(self) -> None:
        require_counts(self, horizon=1, n_samples=1, n_iterations=1, n_elites=1)
        if self.n_elites > self.n_samples:
            raise ValueError(f"n_elites is {self.n_elites}, expected at most n_samples, {self.n_samples}")
        require_number("momentum", self.momentum, 0, 1)
        require_number("init_std", self.init_std, 0, math.inf, open_low=True)
        require_number("stop_variance", self.stop_variance, 0, math.inf)
        require_choice("execute", self.execute, ("best", "mean"))


class CEM(Planner):
    """The cross-entropy method for a batch of environments.

    Args:
        action_space: Box of shape (A,) with finite bounds.
        config: Settings.
    """

    def __init__(self, action_space: spaces.Space[object], config: CEMConfig) -> None:
        super().__init__(action_space, config.horizon)
        self.config = config

    def start(self, n_envs: int, device: torch.device) -> Batch:
        low, high = self.bounds(device)
        return Batch(mean=((low + high) / 2).repeat(n_envs, self.horizon, 1))

    def plan(
        self,
        score: ScoreFunction,
        n_envs: int,
        warm_start: Batch,
        generator: torch.Generator,
        proposals: Tensor | None = None,
    ) -> Plan:
        config = self.config
        self.check(n_envs, warm_start, proposals)
        low, high = self.bounds(generator.device)
        mean = warm_start.mean
        variance = (config.init_std * (high - low) / 2).square().expand_as(mean)
        best = mean
        best_scores: list[Tensor] = []
        for i in range(config.n_iterations):
            # Half the distance to a bound is the largest deviation whose samples, cut off at two, keep the bound.
            room = torch.minimum((mean - low) / CUT, (high - mean) / CUT)
            std = torch.minimum(variance.sqrt(), room).unsqueeze(1)
            noise = _truncated_normal((n_envs, config.n_samples, *mean.shape[1:]), generator)
            candidates = torch.addcmul(mean.unsqueeze(1), noise, std).clamp(low, high)
            if i == 0 and proposals is not None:
                candidates = torch.cat([candidates, proposals.clamp(low, high)], 1)
            elites, scores = best_first(candidates, evaluate(score, candidates), config.n_elites)
            searching = (variance.flatten(1).amax(1) > config.stop_variance) | (i == 0)
            rows = searching[:, None, None]
            variance = torch.where(rows, torch.lerp(elites.var(1, correction=0), variance, config.momentum), variance)
            center = torch.lerp(elites.mean(1), mean, config.momentum).clamp(low, high)  # rounding may leave the bounds
            mean = torch.where(rows, center, mean)
            best = torch.where(rows, elites[:, 0], best)
            best_scores.append(torch.where(searching, scores[:, 0], best_scores[-1]) if i else scores[:, 0])
        last = ((low + high) / 2).expand(n_envs, -1)  # PETS appends 0, the middle of its ranges
        return Plan(
            actions=best if config.execute == "best" else mean,
            expected_return=best_scores[-1],
            warm_start=Batch(mean=shift(mean, last)),
            best_scores=torch.stack(best_scores),
        )


def _truncated_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal samples, cut off at two standard deviations, by inverse transform."""
    tail = float(torch.special.ndtr(torch.tensor(-CUT)))
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    normal: Tensor = torch.special.ndtri(tail + (1 - 2 * tail) * uniform)
    return normal
