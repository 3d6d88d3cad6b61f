"""Whitening: coordinates in which displacements by skills have unit covariance."""

import torch
from torch import Tensor, nn

NULL = 1e-5
"""Directions are dropped whose share of the variance, in standardised dimensions, is at most this, relative to the
largest: nothing changes along them but by rounding, or a quantity appears twice."""


HARDLY = 1e-5
"""Dimensions do not vary whose standard deviation is at most this share of their mean displacement: a clock, say."""


class Whitening(nn.Module):
    """Whitens displacements with a running covariance; directions in which nothing changes become zero.

    Each dimension is standardised first, so that units do not matter: with D the diagonal matrix of standard
    deviations and R the correlation matrix, `matrix` is R^(-1/2) D^(-1), where null directions are left out
    (a pseudo-inverse).

    Args:
        width: Number of dimensions S.
        momentum: Weight of a new batch.

    Attributes:
        covariance: Running covariance of the displacements, (S, S).
        mean: Running mean of the displacements, (S,).
        matrix: Displacements to whitened ones, (S, S).
        inverse: Whitened displacements to displacements, (S, S), the pseudo-inverse of `matrix`.
        dropped: True for dimensions that are zero after whitening, (S,).
    """

    covariance: Tensor
    matrix: Tensor
    inverse: Tensor
    mean: Tensor
    dropped: Tensor
    rank: Tensor
    initialized: Tensor

    def __init__(self, width: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("inverse", torch.eye(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("dropped", torch.zeros(width, dtype=torch.bool))
        self.register_buffer("rank", torch.tensor(width))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, deltas: Tensor, *, decompose: bool = True) -> None:
        """Update the covariance with displacements (N, S); fewer than two, or such that are not finite, change nothing.

        Args:
            deltas: Displacements.
            decompose: If False, the coordinates stay until a later update: a decomposition makes a GPU wait.
        """
        if len(deltas) < 2:
            return
        deltas = deltas.double()  # of a constant, the covariance is then zero
        mean = deltas.mean(0)
        centered = deltas - mean
        covariance = centered.mT @ centered / (len(deltas) - 1)  # torch.cov makes a GPU wait
        finite = covariance.isfinite().all()
        weight = (torch.where(self.initialized, self.momentum, 1.0) * finite).to(self.covariance.dtype)
        self.covariance.lerp_(torch.where(finite, covariance, 0.0).to(self.covariance.dtype), weight)
        self.mean.lerp_(torch.where(finite, mean, 0.0).to(self.mean.dtype), weight)
        self.initialized.logical_or_(finite)
        if decompose:
            self._decompose()

    def _decompose(self) -> None:
        covariance = self.covariance.double()
        std = covariance.diagonal().clamp(min=0).sqrt()
        moves = std > HARDLY * torch.maximum(self.mean.double().abs(), 1e-6 * std.max()).clamp(min=1e-30)
        scale = torch.where(moves, 1 / std, 0.0)
        values, vectors = torch.linalg.eigh(scale[:, None] * covariance * scale)
        kept = values > NULL * values.max().clamp(min=1e-30)
        roots = torch.where(kept, values, 1.0).sqrt()
        whiten = vectors * torch.where(kept, 1 / roots, 0.0) @ vectors.mT
        colour = vectors * torch.where(kept, roots, 0.0) @ vectors.mT
        self.matrix.copy_(whiten * scale)
        self.inverse.copy_(std[:, None] * colour)
        self.dropped.copy_(~moves)
        self.rank.copy_(kept.sum())

    @property
    def n_directions(self) -> int:
        """Number of directions that are not dropped."""
        return int(self.rank)

    def forward(self, delta: Tensor) -> Tensor:
        """Whiten displacements (..., S)."""
        return delta @ self.matrix.mT
