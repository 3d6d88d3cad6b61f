"""Densities of Gaussian mixtures, and the loss of a termination probability."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def mixture_log_prob(target: Tensor, mean: Tensor, std: Tensor, weights: Tensor) -> Tensor:
    """Log density of a mixture of diagonal Gaussians.

    Computed with logsumexp, so that it is accurate far from every mean.

    Args:
        target: Shape (..., S).
        mean: Shape (..., K, S).
        std: Shape (..., K, S), or broadcastable to it.
        weights: Shape (..., K), summing to one.

    Returns:
        Shape (...).
    """
    # Squares and their sums over a batch must not overflow; what is farther off (7e12 in float32) has no gradient.
    farthest = torch.finfo(mean.dtype).max ** (1 / 3)
    z = ((target.unsqueeze(-2) - mean) / std).clamp(-farthest, farthest)
    log_prob = -torch.add(std.log(), z.square(), alpha=0.5).sum(-1) - 0.5 * LOG_2PI * mean.shape[-1]
    if mean.shape[-2] == 1:
        return log_prob.squeeze(-1)
    return torch.logsumexp(log_prob + weights.clamp(min=torch.finfo(weights.dtype).tiny).log(), -1)


def mixture_mean(mean: Tensor, weights: Tensor) -> Tensor:
    """Mean of a mixture: means (..., K, S) and weights (..., K) to (..., S)."""
    return mean.squeeze(-2) if mean.shape[-2] == 1 else (weights.unsqueeze(-1) * mean).sum(-2)


def termination_loss(term_prob: Tensor, terminated: Tensor) -> Tensor:
    """Binary cross-entropy of a termination probability (...), elementwise; finite at 0 and 1 too."""
    return F.binary_cross_entropy(term_prob, terminated.to(term_prob.dtype), reduction="none")
