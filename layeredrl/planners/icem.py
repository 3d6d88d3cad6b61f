"""Improved cross-entropy method, iCEM (Pinneri et al. 2020, arXiv 2008.06389)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_number
from layeredrl.planners.families import make_search, require_search_settings
from layeredrl.planners.planner import Plan, Planner, ScoreFunction, best_first, evaluate, shift
from layeredrl.planners.search import where


@dataclass(frozen=True)
class ICEMConfig:
    """Settings of iCEM; the defaults are the paper's for its real-time budget. Each part can be switched off."""

    horizon: int = 30
    """Number of actions planned ahead."""
    n_samples: int = 40
    """Number of candidates sampled in the first iteration."""
    n_iterations: int = 3
    """Number of rounds of sampling and refitting per decision."""
    n_elites: int = 10
    """Number of best candidates that the distribution is refitted to (in the released code at most half of them)."""
    decay: float = 1.25
    """Factor by which the number of samples shrinks per iteration; 1 keeps it."""
    momentum: float = 0.1
    """Weight of the old mean and standard deviation in a refit."""
    init_std: float = 0.5
    """Initial standard deviation, in units of half the action range."""
    uniform_share: float = 0.5
    """Discrete actions: weight of the uniform distribution in the initial probabilities of a decision."""
    noise_exponent: float = 1.0
    """Exponent of the noise's power spectrum over time; 0 is white, larger is smoother."""
    reuse_fraction: float = 0.3
    """Share of the elites that is reused in the next iteration and decision."""
    keep_elites: bool = True
    """If True, elites of an iteration compete again in the next, with their old scores."""
    shift_elites: bool = True
    """If True, elites of a decision, shifted by one step, compete in the next decision's first iteration."""
    add_mean: bool = True
    """If True, the mean competes in the last iteration."""
    execute: Literal["best", "mean"] = "best"
    """Chosen sequence: the best candidate of the last iteration, or the final mean (the likeliest choices)."""

    def __post_init__(self) -> None:
        require_search_settings(self)
        require_number("decay", self.decay, 1, math.inf)
        require_number("noise_exponent", self.noise_exponent, 0, math.inf)
        require_number("reuse_fraction", self.reuse_fraction, 0, 1)
        require_choice("execute", self.execute, ("best", "mean"))


class ICEM(Planner):
    """iCEM for a batch of environments.

    Args:
        action_space: Box of shape (A,) with finite bounds, Discrete or MultiDiscrete.
        config: Settings.
    """

    ends_with_std = True

    def __init__(self, action_space: spaces.Space[object], config: ICEMConfig) -> None:
        super().__init__(action_space, config.horizon)
        self.config = config
        self.search = make_search(
            action_space,
            config.horizon,
            init_std=config.init_std,
            uniform_share=config.uniform_share,
            noise_exponent=config.noise_exponent,
        )
        self.n_reused = max(1, int(config.reuse_fraction * config.n_elites)) if config.reuse_fraction > 0 else 0
        self.populations = [config.n_samples]
        for _ in range(config.n_iterations - 1):  # the paper rounds down from each population to the next
            shrunk = max(2 * config.n_elites, int(self.populations[-1] / config.decay))
            self.populations.append(min(shrunk, config.n_samples))

    def initial_warm_start(self, n_envs: int, device: torch.device) -> Batch:
        center = self.search.initial_center(n_envs, device)
        return Batch(
            center=center,
            elites=self.search.sequence(center).unsqueeze(1).repeat(1, self.n_reused, 1, 1),
            fresh=torch.ones(n_envs, dtype=torch.bool, device=device),
        )

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
        elites = elite_scores = None
        best_scores = []
        for i, n_samples in enumerate(self.populations):
            candidates = search.sample(belief, n_samples, generator)
            if i == 0:
                candidates = self._with_suggestions(candidates, warm_start, proposals)
            if config.add_mean and i == len(self.populations) - 1:
                candidates[:, 0] = search.sequence(belief.center)
            scores = evaluate(score, candidates)
            if i == 0 and config.shift_elites:
                self._discount_placeholders(scores, warm_start)
            if elites is not None and elite_scores is not None and config.keep_elites and self.n_reused:
                candidates = torch.cat([candidates, elites[:, : self.n_reused]], 1)
                scores = torch.cat([scores, elite_scores[:, : self.n_reused]], 1)
            elites, elite_scores = best_first(candidates, scores, config.n_elites)
            best_scores.append(elite_scores[:, 0])
            found = elite_scores[:, 0] > -torch.inf
            belief = where(found, search.refit(belief, elites, None, config.momentum), belief)
            best = torch.where(found[:, None, None], elites[:, 0], best)
        assert elites is not None
        return Plan(
            actions=best if config.execute == "best" else search.sequence(belief.center),
            score=best_scores[-1],
            warm_start=Batch(
                center=shift(belief.center, belief.center[:, -1]),
                elites=elites[:, : self.n_reused].clone(),  # the caller may write into the warm start
                fresh=torch.zeros_like(warm_start.fresh),
            ),
            best_scores=torch.stack(best_scores),
            std=None if belief.std is None else belief.std[:, 0],
        )

    def _with_suggestions(self, samples: Tensor, warm_start: Batch, proposals: Tensor | None) -> Tensor:
        """Candidates of the first iteration: samples, elites of the last decision, proposals.

        Elites are shifted by one step; their new last action is that of a sample. Environments without a history get
        samples as placeholders, which `_discount_placeholders` excludes.
        """
        parts = [samples]
        if self.config.shift_elites and self.n_reused:
            donors = samples[:, : self.n_reused]
            shifted = shift(warm_start.elites, donors[:, :, -1], dim=2)
            parts.append(torch.where(warm_start.fresh[:, None, None, None], donors, shifted))
        if proposals is not None:
            parts.append(self.search.inside(proposals))
        return torch.cat(parts, 1) if len(parts) > 1 else samples

    def _discount_placeholders(self, scores: Tensor, warm_start: Batch) -> None:
        placeholders = scores[:, self.config.n_samples : self.config.n_samples + self.n_reused]
        placeholders.masked_fill_(warm_start.fresh.unsqueeze(1), -torch.inf)
