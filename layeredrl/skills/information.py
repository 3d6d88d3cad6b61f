"""Information of an outcome about the skill that led to it."""

import math

import torch
from torch import Tensor

from layeredrl.models.density import mixture_log_prob


def information(log_probs: Tensor) -> Tensor:
    """Estimate of log q(x | s, z) - log q(x | s), at most log(L + 1).

    The mean over skills is that over the executed one and L others from the prior, as in the released code of DADS
    (Sharma et al. 2020, arXiv 1907.01657, section 4.1).

    Args:
        log_probs: log q(x | s, z) of the executed skill first, then of the others, (..., 1 + L).

    Returns:
        Shape (...).
    """
    return log_probs[..., 0] - torch.logsumexp(log_probs, -1) + math.log(log_probs.shape[-1])


def fixed_log_prob(target: Tensor, mean: Tensor, weights: Tensor, std: float) -> Tensor:
    """Log density, up to a constant, of a mixture whose Gaussians all have the same standard deviation.

    Args:
        target: Shape (..., S).
        mean: Shape (..., K, S).
        weights: Shape (..., K).
        std: Standard deviation of every dimension.

    Returns:
        Shape (...).
    """
    return mixture_log_prob(target, mean, torch.full_like(mean[..., :1], std), weights)
