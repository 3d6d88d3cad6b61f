"""Coloured noise: normal noise that is correlated over time."""

import math

import torch
from torch import Tensor


def colored_noise_basis(horizon: int, exponent: float) -> Tensor:
    """Matrix (H, H) that turns white noise (..., H) into noise with power spectrum f^-exponent, by `white @ basis`.

    The rows are cosines and sines of the frequencies k / H, with the square root of the spectrum as amplitudes. The
    constant has the power of the lowest frequency. Every time step has variance one (Pinneri et al. 2020, section 3.1;
    the spectrum after Timmer and Koenig 1995).
    """
    time = torch.arange(horizon, dtype=torch.float64)
    rows = []
    for k in range(horizon // 2 + 1):
        amplitude = max(k, 1) ** (-exponent / 2)
        phase = 2 * math.pi * k / horizon * time
        if k == 0 or 2 * k == horizon:
            rows.append(amplitude * phase.cos())
        else:
            rows += [math.sqrt(2) * amplitude * phase.cos(), math.sqrt(2) * amplitude * phase.sin()]
    basis = torch.stack(rows)
    return (basis / basis.square().sum(0).mean().sqrt()).float()


def colored_noise(shape: tuple[int, int, int, int], basis: Tensor | None, generator: torch.Generator) -> Tensor:
    """Normal noise (E, N, H, A), correlated along H by `basis` (None: white), independent otherwise."""
    if basis is None:
        return torch.randn(shape, generator=generator, device=generator.device)
    e, n, h, a = shape
    white = torch.randn((e, n, a, h), generator=generator, device=basis.device)
    return (white @ basis).transpose(-1, -2)
