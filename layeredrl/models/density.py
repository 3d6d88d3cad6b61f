"""Densities of Gaussian mixtures, and the loss of a termination probability."""

import math
from collections.abc import Callable
from typing import Any, cast

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
    z = _standardized(target.unsqueeze(-2), mean, std)
    log_prob = -torch.add(std.log(), z.square(), alpha=0.5).sum(-1) - 0.5 * LOG_2PI * mean.shape[-1]
    if mean.shape[-2] == 1:
        return log_prob.squeeze(-1)
    return torch.logsumexp(log_prob + weights.clamp(min=torch.finfo(weights.dtype).tiny).log(), -1)


def beta_log_prob(target: Tensor, mean: Tensor, std: Tensor, beta: float) -> Tensor:
    """Log density of a diagonal Gaussian, each dimension weighted by its predicted variance to the power `beta`.

    The gradient of a plain log density with respect to the mean is the error divided by the variance: rare large
    errors are soon explained as noise, and the mean is hardly fitted to them any more. With `beta` 1 the mean has the
    gradient of least squares, with 0 that of the log density. The weight has no gradient, so this term alone has the
    same optimal variance for all `beta`; other terms of the loss have more influence where the variance is small
    (Seitzer et al. 2022, arXiv 2203.09168, "β-NLL").

    Args:
        target: Shape (..., S).
        mean: Shape (..., S).
        std: Shape (..., S).
        beta: In [0, 1].

    Returns:
        Shape (...).
    """
    log_prob = -torch.add(std.log(), _standardized(target, mean, std).square(), alpha=0.5) - 0.5 * LOG_2PI
    return (std.detach().pow(2 * beta) * log_prob).sum(-1)


def _standardized(target: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # Squares and their sums over a batch must not overflow; residuals beyond 7e12 (in float32) have no gradient.
    farthest = torch.finfo(mean.dtype).max ** (1 / 3)
    return ((target - mean) / std).clamp(-farthest, farthest)


def mixture_mean(mean: Tensor, weights: Tensor) -> Tensor:
    """Mean of a mixture: means (..., K, S) and weights (..., K) to (..., S)."""
    return mean.squeeze(-2) if mean.shape[-2] == 1 else (weights.unsqueeze(-1) * mean).sum(-2)


def probability(logit: Tensor) -> Tensor:
    """Sigmoid of a logit (...), for a termination probability whose gradient does not vanish.

    The gradient of `termination_loss` with respect to the logit is then exactly `p - y`, also where the sigmoid rounds
    to 0 or 1 and its own derivative is zero.
    """
    return _sigmoid(logit)


def termination_loss(term_prob: Tensor, terminated: Tensor) -> Tensor:
    """Binary cross-entropy of a termination probability (...), elementwise; finite at 0 and 1 too.

    Its gradient, `(p - y) / (p (1 - p))`, is finite everywhere and limited only where p rounds to 0 or 1.
    """
    return _binary_cross_entropy(term_prob, terminated.to(term_prob.dtype))


def _variance(p: Tensor) -> Tensor:
    """Variance p (1 - p) of a binary variable, (...), kept away from zero.

    Its reciprocal times any sensible weight must not overflow, hence the smallest value. Where p is exactly 0 or 1,
    its distance from there is unknown, and the value is moderate: the gradient may reach a parameter unscaled, and an
    optimiser squares it.
    """
    variance = p * (1 - p)
    return torch.where(variance > 0, variance.clamp(min=torch.finfo(p.dtype).tiny ** 0.75), 1e-12)


class _Sigmoid(torch.autograd.Function):
    """The sigmoid, with `_variance` as its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor) -> Tensor:
        return torch.sigmoid(logit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return gradient * _variance(p)


class _BinaryCrossEntropy(torch.autograd.Function):
    """Binary cross-entropy of p and y, with `(p - y) / _variance(p)` as its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(p, y, reduction="none")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, y = ctx.saved_tensors
        return gradient * ((p - y) / _variance(p)), None


_sigmoid = cast(Callable[[Tensor], Tensor], _Sigmoid.apply)  # `apply` has no types in torch
_binary_cross_entropy = cast(Callable[[Tensor, Tensor], Tensor], _BinaryCrossEntropy.apply)
