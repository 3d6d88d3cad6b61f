"""The improved cross-entropy method, iCEM (Pinneri et al. 2020, arXiv 2008.06389)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_counts, require_number
from layeredrl.planners.noise import colored_noise, colored_noise_basis
from layeredrl.planners.planner import Plan, Planner, ScoreFunction, best_first, evaluate, shift


@dataclass(frozen=True)
class ICEMConfig:
    """Settings of iCEM; the defaults are those of the paper's real-time budget. Each part can be switched off."""

    horizon: int = 30
    """Actions that are planned ahead."""
    n_samples: int = 40
    """Candidates sampled in the first iteration."""
    n_iterations: int = 3
    """Rounds of sampling and refitting for each decision."""
    n_elites: int = 10
    """Best candidates that the distribution is refitted to."""
    decay: float = 1.25
    """Factor by which the number of samples shrinks from one iteration to the next; 1 keeps it."""
    momentum: float = 0.1
    """Weight of the old mean and deviation in a refit."""
    init_std: float = 0.5
    """Initial standard deviation, in units of half the action range."""
    noise_exponent: float = 1.0
    """Exponent of the noise's power spectrum over time: 0 is white; the larger, the smoother the sequences."""
    reuse_fraction: float = 0.3
    """Share of the elites that is kept between iterations and decisions."""
    keep_elites: bool = True
    """Whether elites of an iteration compete again in the next, with the scores they had."""
    shift_elites: bool = True
    """Whether elites of a decision, shifted by one step, compete in the next decision's first iteration."""
    add_mean: bool = True
    """Whether the mean competes in the last iteration."""
    execute: Literal["best", "mean"] = "best"
    """Which sequence is chosen: the best candidate of the last iteration, or the final mean."""

    def __post_init__(self) -> None:
        require_counts(self, horizon=1, n_samples=1, n_iterations=1, n_elites=1)
        if self.n_elites > self.n_samples:
            raise ValueError(f"n_elites is {self.n_elites}, expected at most n_samples, {self.n_samples}")
        require_number("decay", self.decay, 1, math.inf)
        require_number("init_std", self.init_std, 0, math.inf, open_low=True)
        require_number("noise_exponent", self.noise_exponent, 0, math.inf)
        require_number("momentum", self.momentum, 0, 1)
        require_number("reuse_fraction", self.reuse_fraction, 0, 1)
        require_choice("execute", self.execute, ("best", "mean"))


class ICEM(Planner):
    """iCEM for a batch of environments.

    Args:
        action_space: Box of shape (A,) with finite bounds.
        config: Settings.
    """

    def __init__(self, action_space: spaces.Space[object], config: ICEMConfig) -> None:
        super().__init__(action_space, config.horizon)
        self.config = config
        self.n_reused = max(1, int(config.reuse_fraction * config.n_elites)) if config.reuse_fraction > 0 else 0
        self.populations = [config.n_samples]
        for _ in range(config.n_iterations - 1):  # the paper rounds down from each population to the next
            shrunk = max(2 * config.n_elites, int(self.populations[-1] / config.decay))
            self.populations.append(min(shrunk, config.n_samples))
        self._basis = colored_noise_basis(config.horizon, config.noise_exponent)

    def start(self, n_envs: int, device: torch.device) -> Batch:
        low, high = self.bounds(device)
        middle = ((low + high) / 2).expand(n_envs, self.horizon, -1)
        return Batch(
            mean=middle.clone(),
            elites=middle.unsqueeze(1).repeat(1, self.n_reused, 1, 1),
            fresh=torch.ones(n_envs, dtype=torch.bool, device=device),
        )

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
        self._basis = self._basis.to(generator.device)
        mean = warm_start.mean
        std = (config.init_std * (high - low) / 2).expand_as(mean)
        elites = elite_scores = None
        best_scores = []
        for i, n_samples in enumerate(self.populations):
            noise = colored_noise((n_envs, n_samples, *mean.shape[1:]), self._basis, generator)
            candidates = torch.addcmul(mean.unsqueeze(1), noise, std.unsqueeze(1)).clamp(low, high)
            extra = []
            if i == 0 and config.shift_elites and self.n_reused:
                extra.append(self._shifted_elites(warm_start, candidates))
            if i == 0 and proposals is not None:
                extra.append(proposals.clamp(low, high))
            if config.add_mean and i == len(self.populations) - 1:
                candidates[:, 0] = mean
            candidates = torch.cat([candidates, *extra], 1) if extra else candidates
            scores = evaluate(score, candidates)
            if i == 0 and config.shift_elites and self.n_reused:
                stand_in = torch.arange(candidates.shape[1], device=scores.device) - n_samples
                stand_in = (stand_in >= 0) & (stand_in < self.n_reused) & warm_start.fresh.unsqueeze(1)
                scores = scores.masked_fill(stand_in, -torch.inf)
            if elites is not None and elite_scores is not None and config.keep_elites and self.n_reused:
                candidates = torch.cat([candidates, elites[:, : self.n_reused]], 1)
                scores = torch.cat([scores, elite_scores[:, : self.n_reused]], 1)
            elites, elite_scores = best_first(candidates, scores, config.n_elites)
            best_scores.append(elite_scores[:, 0])
            mean = torch.lerp(elites.mean(1), mean, config.momentum).clamp(low, high)  # rounding may leave the bounds
            std = torch.lerp(elites.std(1, correction=0), std, config.momentum)
        assert elites is not None
        return Plan(
            actions=elites[:, 0] if config.execute == "best" else mean,
            expected_return=best_scores[-1],
            warm_start=Batch(
                mean=shift(mean, mean[:, -1]),
                elites=elites[:, : self.n_reused].clone(),  # the caller may write into what it keeps
                fresh=torch.zeros_like(warm_start.fresh),
            ),
            best_scores=torch.stack(best_scores),
        )

    def _shifted_elites(self, warm_start: Batch, candidates: Tensor) -> Tensor:
        """Elites of the last decision, one step on; environments without a history get stand-ins, which do not count.

        The new last action comes from the current distribution, that is, from the candidates.
        """
        donors = candidates[:, : self.n_reused]
        shifted = shift(warm_start.elites, donors[:, :, -1])
        return torch.where(warm_start.fresh[:, None, None, None], donors, shifted)
