"""Categorical distributions: draws follow the probabilities, at each step, however correlated; refits by hand."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from layeredrl.planners.categorical import Categorical
from layeredrl.planners.search import Belief, where
from tests.planners.plain import CPU, seeded

H = 6
DISCRETE, MULTI = spaces.Discrete(4), spaces.MultiDiscrete([3, 2, 5])
in_both_spaces = pytest.mark.parametrize("space", [DISCRETE, MULTI], ids=["Discrete", "MultiDiscrete"])


def n_choices(space):
    return np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)


def some_probabilities(space, n_envs, horizon=H, seed=0):
    """Random probabilities (E, H, A, C), all different; a few choices are impossible, a few certain."""
    rng, counts = np.random.default_rng(seed), n_choices(space)
    probabilities = np.zeros((n_envs, horizon, len(counts), max(counts)))
    for i, n in enumerate(counts):
        probabilities[:, :, i, :n] = rng.dirichlet([0.7] * n, (n_envs, horizon))
        probabilities[0, 0, i, :n] = np.eye(n)[-1]
        probabilities[0, 1, i, :n] = 1 / n
        probabilities[0, 2, i, :n] = np.array([0.0] + [1 / (n - 1)] * (n - 1))
    return torch.tensor(probabilities, dtype=torch.float32)


def frequencies(samples, n):
    """Share of each of n choices among samples (E, N, H, A): (E, H, A, n)."""
    return torch.stack([(samples == choice).double().mean(1) for choice in range(n)], -1)


@pytest.mark.parametrize(
    ("space", "exponent", "horizon"),
    [(DISCRETE, 0.0, 1), (DISCRETE, 1.0, 7), (MULTI, 0.0, 6), (MULTI, 3.0, 6)],
    ids=str,
)
def test_draws_have_the_given_probabilities(space, exponent, horizon):
    n = 10_000
    search = Categorical(space, horizon, 0.5, exponent)
    wanted = some_probabilities(space, 2, max(horizon, 3))[:, :horizon]
    samples = search.sample(Belief(wanted, None), n, seeded())
    assert samples.shape == (2, n, horizon, len(n_choices(space)))
    assert samples.dtype == torch.int64
    standard_error = (wanted * (1 - wanted) / n).sqrt()
    error = (frequencies(samples, wanted.shape[-1]) - wanted).abs()
    # 4.5 standard errors, for some 200 frequencies. The impossible never happens, the certain always.
    assert (error <= 4.5 * standard_error + 1e-6).all()


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_environments_samples_and_actions_are_independent(exponent):
    n, n_envs = 10_000, 2
    search = Categorical(MULTI, H, 0.5, exponent)
    samples = search.sample(search.begin(search.initial_center(n_envs, CPU)), n, seeded()).double()
    assert abs(torch.corrcoef(samples[0, :, 0, 0].view(2, -1))[0, 1]) < 5 / (n / 2) ** 0.5  # candidates
    assert abs(torch.corrcoef(samples[:, :, 1, 0])[0, 1]) < 5 / n**0.5  # environments
    actions = torch.corrcoef(samples[0, :, 2].T)
    torch.testing.assert_close(actions, torch.eye(3).double(), rtol=0, atol=5 / n**0.5)
    if not exponent:
        steps = torch.corrcoef(samples[0, :, :, 2].T)
        torch.testing.assert_close(steps, torch.eye(H).double(), rtol=0, atol=5 / n**0.5)


def repetitions(space, exponent, horizon=12):
    """Share of steps that repeat the previous action, for uniform probabilities, (A,)."""
    search = Categorical(space, horizon, 0.5, exponent)
    samples = search.sample(search.begin(search.initial_center(1, CPU)), 4000, seeded())[0]
    return (samples[:, 1:] == samples[:, :-1]).double().mean((0, 1))


@in_both_spaces
def test_the_larger_the_exponent_the_longer_choices_last(space):
    by_exponent = torch.stack([repetitions(space, exponent) for exponent in (0.0, 0.5, 1.0, 2.0, 4.0)])
    chance = 1 / torch.as_tensor(n_choices(space)).double()
    # 44,000 pairs, neighbours among which share an action: twice the independent standard error, five times.
    torch.testing.assert_close(by_exponent[0], chance, rtol=0, atol=5 * 2 * 0.5 / 44_000**0.5)
    assert (by_exponent.diff(dim=0) > 0.02).all()
    assert (by_exponent[-1] > chance + 0.3).all()


def test_impossible_choices_are_never_drawn():
    search = Categorical(MULTI, H, 0.5, 2.0)
    belief = search.begin(search.initial_center(3, CPU))
    for seed in range(3):
        samples = search.sample(belief, 500, seeded(seed))
        assert samples.amin((0, 1, 2)).tolist() == [0, 0, 0]
        assert samples.amax((0, 1, 2)).tolist() == [2, 1, 4]
        belief = search.begin(search.refit(belief, samples, None, 0.1).center)
        assert (belief.center[:, :, 0, 3:] == 0).all()
        assert (belief.center[:, :, 1, 2:] == 0).all()
        torch.testing.assert_close(belief.center.sum(-1), torch.ones(3, H, 3))


def test_draws_come_from_the_generator_alone():
    search, state = Categorical(MULTI, H, 0.5, 1.0), torch.random.get_rng_state()
    belief = search.begin(search.initial_center(2, CPU))
    first, again, other = (search.sample(belief, 50, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def counted(sequences, weights, n):
    """Shares (E, H, A, n) of the choices in sequences (E, K, H, A), one by one."""
    e, k, h, a = sequences.shape
    shares = np.zeros((e, h, a, n))
    for env, row, step, action in np.ndindex(e, k, h, a):
        shares[env, step, action, sequences[env, row, step, action]] += weights[env, row]
    return shares


@in_both_spaces
@pytest.mark.parametrize(("momentum", "weighted"), [(0.0, False), (0.3, True), (1.0, True)])
def test_a_refit_counts_choices(space, momentum, weighted):
    rng, (e, k) = np.random.default_rng(3), (3, 7)
    counts = n_choices(space)
    sequences = rng.integers(0, counts, (e, k, H, len(counts)))
    weights = rng.dirichlet([0.5] * k, e) if weighted else np.full((e, k), 1 / k)
    old = some_probabilities(space, e)
    refitted = Categorical(space, H, 0.5).refit(
        Belief(old, None),
        torch.tensor(sequences),
        torch.tensor(weights, dtype=torch.float32) if weighted else None,
        momentum,
    )
    expected = momentum * old.numpy() + (1 - momentum) * counted(sequences, weights, max(counts))
    assert refitted.std is None
    assert refitted.center.dtype == torch.float32
    np.testing.assert_allclose(refitted.center.numpy(), expected, atol=1e-6)


@in_both_spaces
def test_the_initial_center_is_uniform_over_possible_choices(space):
    start = Categorical(space, H, 0.5).initial_center(2, CPU)
    counts = n_choices(space)
    assert start.shape == (2, H, len(counts), max(counts))
    for i, n in enumerate(counts):
        expected = [1 / n] * n + [0.0] * (max(counts) - n)
        np.testing.assert_allclose(start[:, :, i].numpy(), np.broadcast_to(expected, (2, H, max(counts))), rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_decisions_start_with_a_share_of_the_uniform_distribution(share):
    center = some_probabilities(MULTI, 3)
    kept = center.clone()
    search = Categorical(MULTI, H, share)
    belief = search.begin(center)
    torch.testing.assert_close(belief.center, (1 - share) * center + share * search.initial_center(3, CPU))
    assert torch.equal(center, kept)


def test_the_sequence_of_a_centre_has_its_likeliest_choices():
    center = torch.tensor([[[[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]], [[0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]]])
    assert Categorical(spaces.MultiDiscrete([3, 2]), 2, 0.5).sequence(center).tolist() == [[[1, 0], [2, 1]]]


def test_the_largest_variance_is_that_of_the_least_certain_choice():
    certain = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    center = torch.tensor([[certain, [[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]]], [certain, certain]])
    variance = Categorical(spaces.MultiDiscrete([3, 2]), 2, 0.5).largest_variance(Belief(center, None))
    torch.testing.assert_close(variance, torch.tensor([0.7 * 0.3, 0.0]))


def test_sequences_are_clipped_to_the_choices():
    sequences = torch.tensor([[[-3, 0, 9], [2, 5, 4], [3, -1, 5]]])
    assert Categorical(MULTI, 3, 0.5).inside(sequences).tolist() == [[[0, 0, 4], [2, 1, 4], [2, 0, 4]]]


def test_only_the_marked_environments_take_the_new_probabilities():
    old, new = some_probabilities(MULTI, 3, seed=1), some_probabilities(MULTI, 3, seed=2)
    chosen = where(torch.tensor([True, False, True]), Belief(new, None), Belief(old, None))
    assert torch.equal(chosen.center, torch.stack([new[0], old[1], new[2]]))
    assert chosen.std is None
