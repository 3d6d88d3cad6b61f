"""Information of outcomes about skills, against plain loops, torch's mixtures and values of ideal skills."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from layeredrl.skills.information import fixed_log_prob, information


def test_information_is_the_log_ratio_of_the_executed_skill_s_density_to_the_mean():
    log_probs = 3 * torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = information(log_probs)
    assert found.shape == (2, 5)
    for i, j in np.ndindex(2, 5):
        densities = [math.exp(x) for x in log_probs[i, j].tolist()]
        assert float(found[i, j]) == pytest.approx(math.log(densities[0] / (sum(densities) / 4)), abs=1e-12)


def test_information_equals_the_reward_of_the_released_code_of_dads():
    log_probs = 5 * torch.randn((50, 101), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = (log_probs[:, 1:] - log_probs[:, :1]).clamp(-50, 50)  # which here cuts nothing off
    torch.testing.assert_close(information(log_probs), math.log(101) - torch.log(1 + others.exp().sum(1)))


@pytest.mark.parametrize("size", [1.0, 100.0, 1e6])
def test_information_is_at_most_the_log_of_the_number_of_skills(size):
    log_probs = size * torch.randn((1000, 17), generator=torch.Generator().manual_seed(0))
    found = information(log_probs)
    assert found.isfinite().all()
    assert found.max() <= math.log(17) + 1e-5
    certain = torch.full((1, 17), -size - 100)
    certain[0, 0] = 0.0
    assert float(information(certain)) == pytest.approx(math.log(17))
    torch.testing.assert_close(
        information(log_probs[:, :1].expand(-1, 17)), torch.zeros(1000), atol=1e-6 * size, rtol=0
    )


@pytest.mark.parametrize(
    ("n_dims", "std", "expected"), [(2, 1.0, 1.18), (2, 0.5, 2.24), (2, 0.3, 3.05), (3, 0.5, 3.22)]
)
def test_the_information_of_ideal_skills(n_dims, std, expected):
    """A linear outcome of unit variance, known without error, and 100 other skills: numbers of ALGORITHMS.md, B.1."""
    skills = 2 * torch.rand((4000, 101, n_dims), generator=torch.Generator().manual_seed(0)) - 1
    means = math.sqrt(3) * skills
    log_probs = fixed_log_prob(means[:, :1, :], means[:, :, None], torch.ones(4000, 101, 1), std)
    assert float(information(log_probs).mean()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("n_modes", [1, 4])
@pytest.mark.parametrize("std", [0.2, 1.7])
def test_densities_are_those_of_a_mixture(n_modes, std):
    torch.manual_seed(0)
    target, mean = torch.randn(6, 1, 3), torch.randn(6, 5, n_modes, 3)
    weights = torch.rand(6, 5, n_modes).softmax(-1)
    found = fixed_log_prob(target, mean, weights, std)
    mixture = MixtureSameFamily(Categorical(weights), Independent(Normal(mean, torch.full_like(mean, std)), 1))
    expected = mixture.log_prob(target.expand(6, 5, 3))
    assert found.shape == (6, 5)
    constant = (found - expected).mean()
    torch.testing.assert_close(found, expected + constant, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(information(found), information(expected), rtol=1e-4, atol=1e-4)
