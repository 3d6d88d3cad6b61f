"""Model predictive path integral control, MPPI (Williams et al. 2017, "Information theoretic MPC").

With other settings, and `temperature_unit="score"`, it is close to the planner of DADS (Sharma et al. 2019, arXiv
1907.01657: `temperature=0.1`, `init_std=1.22`, `adapt_std=False`, `smoothing=0.9`; its new plans start at random)
and to that of TD-MPC2 (Hansen et al. 2023, arXiv 2310.16828: `n_elites=64`, `temperature=2`, `init_std=2`,
`execute="sample"`).
Deviation: the control cost that Williams et al. add to the score is left to the reward.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.action_spaces import is_discrete
from layeredrl.checks import require_choice, require_number
from layeredrl.planners.families import make_search, require_search_settings
from layeredrl.planners.planner import Contest, Plan, Planner, ScoreFunction, shift
from layeredrl.planners.search import Belief, where


@dataclass(frozen=True)
class MPPIConfig:
    """Settings of MPPI."""

    horizon: int = 30
    """Number of actions planned ahead."""
    n_samples: int = 100
    """Number of candidates per iteration."""
    n_iterations: int = 3
    """Number of rounds of sampling and refitting per decision; Williams et al. have one."""
    n_elites: int | None = None
    """Number of best candidates that the distribution is refitted to; None: all."""
    temperature: float = 0.3
    """Temperature of the candidates' weights, exp((score - best score) / (temperature * unit))."""
    temperature_unit: Literal["score", "spread"] = "spread"
    """Unit of the temperature: `score` is that of the score, as in the papers; `spread` is the standard deviation of
    the elites' scores, so that one setting suits rewards of any scale."""
    init_std: float = 0.5
    """Initial standard deviation, in units of half the action range."""
    adapt_std: bool = True
    """If True, refit the standard deviation too, as in TD-MPC2; if False, keep it fixed, as in the first papers."""
    min_std: float = 0.05
    """Lower bound of a refitted standard deviation, in units of half the action range; its upper bound is init_std."""
    uniform_share: float = 0.5
    """Discrete actions: weight of the uniform distribution in the initial probabilities of a decision."""
    momentum: float = 0.0
    """Weight of the old mean and standard deviation in a refit."""
    smoothing: float = 0.0
    """Weight of a candidate's previous action in the next one; continuous actions only (DADS: 0.9)."""
    noise_exponent: float = 0.0
    """Exponent of the noise's power spectrum over time; 0 is white, larger is smoother."""
    execute: Literal["mean", "best", "sample"] = "mean"
    """Chosen sequence: the final mean (the likeliest choices), the best candidate of the last iteration, or
    one of its candidates drawn by weight."""

    def __post_init__(self) -> None:
        require_search_settings(self)
        require_number("temperature", self.temperature, 0, math.inf, open_low=True)
        require_choice("temperature_unit", self.temperature_unit, ("score", "spread"))
        require_number("min_std", self.min_std, 0, math.inf)
        require_number("smoothing", self.smoothing, 0, 1)
        require_number("noise_exponent", self.noise_exponent, 0, math.inf)
        require_choice("execute", self.execute, ("mean", "best", "sample"))


class MPPI(Planner):
    """MPPI for a batch of environments.

    Args:
        action_space: Box of shape (A,) with finite bounds, Discrete or MultiDiscrete.
        config: Settings.
    """

    ends_with_std = True

    def __init__(self, action_space: spaces.Space[object], config: MPPIConfig) -> None:
        super().__init__(action_space, config.horizon)
        self.config = config
        self.search = make_search(
            action_space,
            config.horizon,
            init_std=config.init_std,
            uniform_share=config.uniform_share,
            noise_exponent=config.noise_exponent,
        )
        if config.smoothing and is_discrete(action_space):
            raise ValueError(
                f"smoothing is {config.smoothing}, expected 0 for {action_space}: use noise_exponent for choices that "
                "repeat"
            )
        self._smoother = smoothing_matrix(config.horizon, config.smoothing) if config.smoothing else None

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
        belief = first = search.begin(warm_start.center)
        chosen = search.sequence(belief.center)
        contest = Contest(score, search, proposals)
        best_scores = []
        for _ in range(config.n_iterations):
            candidates = search.sample(belief, config.n_samples, generator)
            if self._smoother is not None:
                self._smoother = self._smoother.to(candidates.device)
                candidates = search.inside(self._smoother @ candidates)
            elites, elite_scores = contest.best(candidates, config.n_elites)
            best_scores.append(elite_scores[:, 0])
            found = elite_scores[:, 0] > -torch.inf
            weights = self._weights(elite_scores)
            refitted = search.refit(belief, elites, weights, config.momentum)
            belief = where(found, self._with_std(refitted, first), belief)
            if config.execute == "sample":
                draw = torch.rand((n_envs, 1), generator=generator, device=weights.device)
                index = (weights.cumsum(1) < draw).sum(1).clamp(max=weights.shape[1] - 1)
                drawn = elites[torch.arange(n_envs, device=index.device), index]
            else:
                drawn = elites[:, 0]
            chosen = torch.where(found[:, None, None], drawn, chosen)
        return Plan(
            actions=search.sequence(belief.center) if config.execute == "mean" else chosen,
            score=best_scores[-1],
            warm_start=Batch(center=shift(belief.center, search.initial_center(n_envs, generator.device)[:, -1])),
            best_scores=torch.stack(best_scores),
            std=None if belief.std is None else belief.std[:, 0],
        )

    def _weights(self, scores: Tensor) -> Tensor:
        """Weights (E, n) that sum to one, of candidates with scores (E, n), best first."""
        scores = scores.double()  # their squares neither overflow nor underflow
        finite = scores > -torch.inf
        gap = torch.where(finite[:, :1], scores - scores[:, :1], 0.0)
        if self.config.temperature_unit == "spread":
            gaps, n = torch.where(finite, gap, 0.0), finite.sum(1, keepdim=True).clamp(min=1)
            mean = gaps.sum(1, keepdim=True) / n
            unit = (torch.where(finite, gaps - mean, 0.0).square().sum(1, keepdim=True) / n).sqrt()
            gap = gap / unit.clamp(min=torch.finfo(unit.dtype).tiny)
        return torch.softmax(gap / self.config.temperature, 1).float()

    def _with_std(self, refitted: Belief, first: Belief) -> Belief:
        """Replace standard deviations by the initial ones, or limit them to [min_std, init_std]."""
        if refitted.std is None or first.std is None:
            return refitted
        if not self.config.adapt_std:
            return Belief(refitted.center, first.std)
        lowest = first.std * min(1.0, self.config.min_std / self.config.init_std)
        return Belief(refitted.center, torch.minimum(torch.maximum(refitted.std, lowest), first.std))


def smoothing_matrix(horizon: int, weight: float) -> Tensor:
    """Matrix (H, H) of exponential smoothing: `weight` times the previous action, 1 - `weight` times its own (DADS)."""
    matrix = torch.zeros(horizon, horizon)
    row = torch.zeros(horizon)
    for i in range(horizon):
        row = row * weight
        row[i] = 1 - weight if i else 1.0
        matrix[i] = row
    return matrix
