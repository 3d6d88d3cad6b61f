"""Statistics of ranks, ties included."""

import torch
from torch import Tensor


def ranks(x: Tensor) -> Tensor:
    """Ranks of the values (N,), from 1 in float64; equal values share the mean of their ranks."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    result: Tensor = (last - (counts.double() - 1) / 2)[inverse]
    return result


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two samples (N,), ties included; NaN if one of them does not vary."""
    a, b = (ranks(x) - (len(x) + 1) / 2 for x in (a, b))
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Probability that a positive (P,) exceeds a negative (N,), ties counted half: the area under the ROC curve."""
    n, p = len(negatives), len(positives)
    rank_sum = float(ranks(torch.cat([negatives, positives]))[n:].sum())
    return (rank_sum - p * (p + 1) / 2) / (n * p)
