"""Doubt about predictions, against torch.distributions and numerical integrals."""

import math
from itertools import combinations

import torch
from torch.distributions import Normal, kl_divergence

from layeredrl.world_model.trust import BITS_AT_ZERO, DivergenceTrust, InformationTrust, divergence, fuse


def members(n_members, n_rows, n_dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n_members, n_rows, n_dims, generator=generator, dtype=torch.float64)
    return mean, torch.rand(n_members, n_rows, n_dims, generator=generator, dtype=torch.float64) + 0.1


def test_divergence_is_the_mean_over_pairs_to_their_geometric_mean():
    mean, variance = members(4, 6, 3)
    expected = torch.zeros(6, dtype=torch.float64)
    for a, b in combinations(range(4), 2):
        p, q = (Normal(mean[i], variance[i].sqrt()) for i in (a, b))
        # The geometric mean of the densities, normalised on a grid, has these moments.
        grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None, None]
        log_density = (p.log_prob(grid) + q.log_prob(grid)) / 2
        weights = torch.softmax(log_density, 0)
        center = (weights * grid).sum(0)
        middle = Normal(center, (weights * (grid - center).square()).sum(0).sqrt())
        expected += (kl_divergence(p, middle) + kl_divergence(q, middle)).sum(-1) / 2
    torch.testing.assert_close(divergence(mean, variance), expected / 6, rtol=1e-5, atol=1e-7)


def test_equal_members_do_not_diverge_and_units_do_not_matter():
    mean, variance = members(3, 5, 2)
    assert divergence(mean[:1].expand(3, -1, -1), variance[:1].expand(3, -1, -1)).abs().max() < 1e-12
    torch.testing.assert_close(divergence(7 * mean, 49 * variance), divergence(mean, variance))


def test_fusing_takes_the_error_of_the_means_out_of_a_draw():
    mean, variance = members(5, 1, 1)
    drawn = torch.tensor([[0.7]], dtype=torch.float64)
    fused = fuse(mean, variance, drawn)
    # The environment's state has the geometric mean of the members' densities; the draw is it plus the members' error.
    grid = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
    prior = Normal(mean.flatten()[:, None], variance.sqrt().flatten()[:, None]).log_prob(grid).mean(0)
    weights = torch.softmax(prior, 0)
    center = (weights * grid).sum()
    error = (mean.flatten() - center).square().mean()
    posterior = torch.softmax(prior + Normal(grid, error.sqrt()).log_prob(drawn[0]), 0)
    expected = (posterior * grid).sum()
    left = (posterior * (grid - expected).square()).sum()
    torch.testing.assert_close(fused.state[0, 0], expected, rtol=1e-5, atol=1e-6)
    entropy = Normal(0.0, left.sqrt()).entropy() / math.log(2)
    torch.testing.assert_close(fused.bits[0, 0], entropy - BITS_AT_ZERO, rtol=1e-5, atol=1e-5)


def test_members_that_agree_leave_the_draw_as_it_is():
    mean, variance = members(1, 4, 2)
    drawn = torch.randn(4, 2, dtype=torch.float64)
    fused = fuse(mean.expand(3, -1, -1), variance.expand(3, -1, -1), drawn)
    torch.testing.assert_close(fused.state, drawn)
    assert fused.bits.isfinite().all()


def test_divergence_is_bounded_by_a_quantile_averaged_over_fits():
    trust = DivergenceTrust(2.0, 0.5)
    trust.fit(torch.tensor([[1.0], [3.0], [torch.nan], [2.0]]))
    trust.fit(torch.tensor([[4.0]]))
    other = DivergenceTrust(2.0, 0.5)
    other.load_state_dict(trust.state_dict())
    measures = torch.tensor([[5.9], [6.1], [torch.nan]])
    for each in (trust, other):
        assert each.holds(measures, measures).tolist() == [True, False, False]


def test_information_is_bounded_in_a_step_and_so_far_in_every_dimension():
    trust = InformationTrust((1.0, 0.0), 3)
    trust.fit(torch.tensor([[1.0, 10.0], [2.0, 30.0]]))
    measures = torch.tensor([[2.0, 30.0], [2.1, 20.0], [1.0, 31.0], [1.0, 20.0], [1.0, 20.0]])
    so_far = torch.tensor([[3.0, 30.0], [2.1, 20.0], [1.0, 30.0], [3.1, 20.0], [1.0, 30.1]])
    assert trust.holds(measures, so_far).tolist() == [True, False, False, False, False]


def test_measures_that_are_not_finite_do_not_bound():
    nan, one = torch.tensor([[1.0, torch.nan]]), torch.tensor([[1.0, 1.0]])
    trust = InformationTrust((1.0, 0.0), 3)
    trust.fit(torch.cat([nan, 2 * one]))
    assert trust.holds(torch.cat([one, nan]), torch.cat([one, nan])).tolist() == [True, False]
    trust.fit(nan)
    assert trust.holds(one, one).tolist() == [False]
