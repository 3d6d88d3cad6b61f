"""Coloured noise: spectrum, distribution, independence."""

import numpy as np
import pytest
import torch

from layeredrl.planners.noise import colored_noise, colored_noise_basis

EXPONENTS = [0.0, 0.25, 1.0, 3.5]
N = 10_000


def sample(horizon, exponent, n=N, seed=0):
    """Noise of one action in one environment, (n, H)."""
    basis = colored_noise_basis(horizon, exponent)
    noise = colored_noise((1, n, horizon, 1), basis, torch.Generator().manual_seed(seed))
    assert noise.shape == (1, n, horizon, 1)
    assert noise.dtype == torch.float32
    return noise[0, :, :, 0].double().numpy()


def expected_autocovariance(horizon, exponent):
    """From the spectrum f^-exponent over all Fourier frequencies; the constant has the lowest one's power."""
    frequency = np.abs(np.fft.fftfreq(horizon))
    frequency[0] = 1 / horizon
    autocovariance = np.fft.ifft(frequency**-exponent).real
    return autocovariance / autocovariance[0]


@pytest.mark.parametrize("horizon", [1, 2, 3, 30, 31])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_covariance_is_that_of_the_spectrum(horizon, exponent):
    basis = colored_noise_basis(horizon, exponent).double().numpy()
    assert basis.shape == (horizon, horizon)
    lag = np.arange(horizon)[:, None] - np.arange(horizon)
    wanted = expected_autocovariance(horizon, exponent)[lag]  # negative lags wrap around, as the circle does
    np.testing.assert_allclose(basis.T @ basis, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("exponent", [1.0, 3.5])
def test_sequences_are_gaussian_with_this_covariance(exponent):
    noise = sample(30, exponent)
    np.testing.assert_allclose(noise.mean(0), 0, atol=5 / N**0.5)
    lag = np.arange(30)[:, None] - np.arange(30)
    np.testing.assert_allclose(np.cov(noise.T), expected_autocovariance(30, exponent)[lag], atol=5 * (2 / N) ** 0.5)
    for projection in (noise[:, 7], noise.mean(1), noise[:, ::2].sum(1) - noise[:, 1::2].sum(1)):
        z = (projection - projection.mean()) / projection.std()
        assert (z**3).mean() == pytest.approx(0, abs=5 * (6 / N) ** 0.5)  # skewness
        assert (z**4).mean() == pytest.approx(3, abs=5 * (24 / N) ** 0.5)  # kurtosis


def test_environments_samples_and_actions_are_independent():
    shape = (200, 100, 8, 3)
    noise = colored_noise(shape, colored_noise_basis(8, 2.0), torch.Generator().manual_seed(1))
    assert noise.shape == shape
    for dim, other in [(0, 1), (1, 0), (3, 0)]:
        x = noise.movedim((dim, other), (0, 1))
        pairs = torch.stack([x[0].flatten(), x[1].flatten()])  # neighbours along `dim`, all else equal
        # The steps of a sequence are correlated: count sequences, not numbers.
        assert abs(torch.corrcoef(pairs)[0, 1]) < 5 / (pairs.shape[1] / 8) ** 0.5


def test_it_comes_from_the_generator_alone():
    basis, state = colored_noise_basis(8, 1.0), torch.random.get_rng_state()
    first, again, other = (
        colored_noise((2, 3, 8, 1), basis, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())
