"""Gaussian distributions: refits by hand, and averages that rounding must not move out of the bounds."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from layeredrl.planners.gaussian import ClippedGaussian, TruncatedGaussian
from layeredrl.planners.search import Belief, where
from tests.planners.plain import CPU, HIGH, LOW, SPACE

E, K, H, A = 3, 7, 4, 2
in_both_families = pytest.mark.parametrize("family", [ClippedGaussian, TruncatedGaussian])


def some_weights(rng, k):
    return rng.dirichlet([0.5] * k, E)


def tensor(x):
    return torch.tensor(x, dtype=torch.float32)


@in_both_families
@pytest.mark.parametrize(("momentum", "weighted"), [(0.3, False), (0.3, True), (1.0, True)])
def test_a_refit_is_the_weighted_mean_and_standard_deviation(family, momentum, weighted):
    rng = np.random.default_rng(0)
    sequences, old_mean = rng.uniform(LOW, HIGH, (E, K, H, A)), rng.uniform(LOW, HIGH, (E, H, A))
    weights, old_std = some_weights(rng, K) if weighted else np.full((E, K), 1 / K), rng.uniform(0.1, 1, (E, H, A))
    refitted = family(SPACE, H, 0.5).refit(
        Belief(tensor(old_mean), tensor(old_std)), tensor(sequences), tensor(weights) if weighted else None, momentum
    )
    mean = np.stack([np.average(x, axis=0, weights=w) for x, w in zip(sequences, weights, strict=True)])
    variance = np.stack(
        [np.average((x - m) ** 2, axis=0, weights=w) for x, m, w in zip(sequences, mean, weights, strict=True)]
    )
    if family is TruncatedGaussian:  # PETS's code averages variances, iCEM's deviations
        std = np.sqrt((1 - momentum) * variance + momentum * old_std**2)
    else:
        std = (1 - momentum) * np.sqrt(variance) + momentum * old_std
    np.testing.assert_allclose(refitted.center.numpy(), (1 - momentum) * mean + momentum * old_mean, atol=1e-5)
    np.testing.assert_allclose(refitted.std.numpy(), std, atol=1e-5)


@in_both_families
@pytest.mark.parametrize("weighted", [False, True])
def test_averages_of_actions_on_a_bound_stay_within(family, weighted):
    rng = np.random.default_rng(0)
    low = rng.uniform(-3, 0, 50).astype(np.float32)
    space = spaces.Box(low, (low + rng.uniform(0.1, 3, 50)).astype(np.float32))
    search = family(space, H, 0.5)
    rounded = 0
    for k in (3, 7, 11, 49):
        for bound in (space.low, space.high):
            sequences = tensor(bound).expand(E, k, H, 50)
            weights = tensor(some_weights(rng, k)) if weighted else None
            belief = Belief(sequences[:, 0], torch.ones(E, H, 50))
            refitted = search.refit(belief, sequences, weights, 0.1)
            assert (refitted.center >= tensor(space.low)).all()
            assert (refitted.center <= tensor(space.high)).all()
            assert refitted.std.isfinite().all()
            rounded += int((refitted.center != sequences[:, 0]).sum())
    if weighted:
        assert rounded > 0  # else this test shows nothing


@in_both_families
def test_decisions_start_around_the_centre_with_the_initial_standard_deviation(family):
    search = family(SPACE, H, 0.3)
    np.testing.assert_allclose(search.initial_center(E, CPU), np.broadcast_to((LOW + HIGH) / 2, (E, H, A)), rtol=1e-6)
    center = tensor(np.random.default_rng(0).uniform(LOW, HIGH, (E, H, A)))
    belief = search.begin(center)
    assert torch.equal(belief.center, center)
    np.testing.assert_allclose(belief.std.numpy(), np.broadcast_to(0.3 * (HIGH - LOW) / 2, (E, H, A)), rtol=1e-6)
    assert torch.equal(search.sequence(center), center)


@in_both_families
def test_the_largest_variance_is_that_of_the_widest_action(family):
    std = tensor(np.random.default_rng(0).uniform(0.1, 0.5, (E, H, A)))
    std[1, 2, 0] = 0.9
    variance = family(SPACE, H, 0.5).largest_variance(Belief(torch.zeros(E, H, A), std))
    torch.testing.assert_close(variance, std.flatten(1).max(1).values.square())
    assert variance[1].item() == pytest.approx(0.81)


def test_only_the_marked_environments_take_the_new_parameters():
    new, old = (Belief(torch.full((E, H, A), x), torch.full((E, H, A), 2 * x)) for x in (1.0, 10.0))
    chosen = where(torch.tensor([False, True, False]), new, old)
    assert chosen.center[:, 0, 0].tolist() == [10, 1, 10]
    assert chosen.std[:, 0, 0].tolist() == [20, 2, 20]
