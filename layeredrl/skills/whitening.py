"""Whitening: coordinates in which displacements by skills have unit covariance."""

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """Inverse square root of a running covariance: displacements times `matrix` have unit covariance.

    Args:
        width: Number of dimensions S.
        momentum: Weight of a new batch.
    """

    covariance: Tensor
    matrix: Tensor
    inverse: Tensor
    initialized: Tensor

    def __init__(self, width: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("matrix", torch.eye(width))
        self.register_buffer("inverse", torch.eye(width))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, deltas: Tensor) -> None:
        """Update the covariance with displacements (N, S); fewer than two change nothing."""
        if len(deltas) < 2:
            return
        covariance = torch.cov(deltas.mT).reshape(self.covariance.shape)
        weight = self.momentum if self.initialized else 1.0
        self.covariance.lerp_(covariance, weight)
        self.initialized.fill_(True)
        values, vectors = torch.linalg.eigh(self.covariance)
        roots = values.clamp(min=1e-8 * float(values.max().clamp(min=1e-12))).sqrt()
        self.matrix.copy_(vectors / roots @ vectors.mT)
        self.inverse.copy_(vectors * roots @ vectors.mT)

    def forward(self, delta: Tensor) -> Tensor:
        """Whiten displacements (..., S)."""
        return delta @ self.matrix.mT
