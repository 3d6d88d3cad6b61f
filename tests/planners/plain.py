"""Objectives and given random numbers, with which planners and their references in plain numpy are compared."""

import numpy as np
import torch
from gymnasium import spaces

import layeredrl.planners.gaussian as gaussian_module

CPU = torch.device("cpu")
LOW, HIGH = np.array([-1.0, -0.4]), np.array([0.5, 1.2])
SPACE = spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def middle(horizon):
    """Middle of the bounds, (H, A)."""
    return np.tile((LOW + HIGH) / 2, (horizon, 1))


def bumpy(env_id, sequences):
    """Objective of several maxima (N, H, A) -> (N,), different for each environment, in numpy or torch."""
    sin, cos = (torch.sin, torch.cos) if isinstance(sequences, torch.Tensor) else (np.sin, np.cos)
    steps = sin(3 * sequences[..., 0] + env_id) - 2 * (sequences[..., 1] - 0.2 * env_id) ** 2
    return (steps + cos(5 * sequences[..., 0] * sequences[..., 1])).sum(-1)


def flat(candidates):
    return torch.zeros(candidates.shape[:2])


class HalfFailing:
    """Objective that is not finite where the first action is in the upper half of its range."""

    def __init__(self, objective):
        self.objective, self.n_finite = objective, []

    def __call__(self, env_id, sequences):
        where = torch.where if isinstance(sequences, torch.Tensor) else np.where
        failure = [float("nan"), float("inf"), -float("inf")][env_id % 3]
        scores = where(sequences[..., 0, 0] > -0.25, failure, self.objective(env_id, sequences))
        self.n_finite.append(int(np.isfinite(np.asarray(scores)).sum()))
        return scores


class Recorder:
    """Score function that keeps the candidates that it was shown."""

    def __init__(self, function):
        self.function, self.shown = function, []

    def __call__(self, candidates):
        self.shown.append(candidates.clone())
        return self.function(candidates)


def by_row(objective):
    """Score function of all environments, recorded, from an objective of one."""
    return Recorder(lambda x: torch.stack([objective(i, rows) for i, rows in enumerate(x)]))


class GivenNumbers:
    """Replaces `colored_noise` and `torch.rand`, and keeps what it drew."""

    def __init__(self, monkeypatch):
        self.rng = np.random.default_rng(0)
        self.noise, self.uniform = [], []
        monkeypatch.setattr(gaussian_module, "colored_noise", self._draw_noise)
        monkeypatch.setattr(torch, "rand", self._draw_uniform)

    def _draw_noise(self, shape, basis, generator):
        self.noise.append(self.rng.standard_normal(shape))
        return torch.tensor(self.noise[-1], dtype=torch.float32)

    def _draw_uniform(self, shape, **_):
        self.uniform.append(self.rng.uniform(size=shape))
        return torch.tensor(self.uniform[-1], dtype=torch.float32)

    def clear(self):
        self.noise.clear()
        self.uniform.clear()


def best_finite(scores, n):
    """Indices of the n best finite scores, best first; ties keep their order."""
    finite = np.flatnonzero(np.isfinite(scores))
    return finite[np.argsort(-scores[finite], kind="stable")][:n]


def fill_up(order, n):
    """Repeat the best index where there are fewer than n."""
    return np.concatenate([order, np.full(n - len(order), order[0])])
