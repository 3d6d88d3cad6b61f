"""Random shooting: candidates are uniform and independent, the best one is chosen, and nothing is remembered."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import RandomShooting, RandomShootingConfig

CPU = torch.device("cpu")
E, H = 4, 5
LOW, HIGH = np.array([-1.0, 0.2, -30.0], np.float32), np.array([0.5, 0.3, 70.0], np.float32)
SPACES = [spaces.Box(LOW, HIGH), spaces.Discrete(4), spaces.MultiDiscrete([3, 2, 5])]
in_all_spaces = pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)


class Recorder:
    def __init__(self, function):
        self.function, self.shown = function, []

    def __call__(self, candidates):
        self.shown.append(candidates.clone())
        return self.function(candidates)


def score(candidates):
    """Differs between environments."""
    weights = torch.linspace(-1, 1, len(candidates) * H).view(len(candidates), 1, H, 1)
    return (weights * (candidates.float() + 0.3).sin()).sum((-1, -2))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def decide(space, n_samples, function=score, *, n_envs=E, seed=0, proposals=None):
    """A plan, and the candidates that were scored."""
    planner = RandomShooting(space, RandomShootingConfig(horizon=H, n_samples=n_samples))
    recorder = Recorder(function)
    plan = planner.plan(recorder, n_envs, planner.initial_warm_start(n_envs, CPU), seeded(seed), proposals)
    assert len(recorder.shown) == 1
    return plan, recorder.shown[0]


def chi_square(classes, n_classes):
    """Of the columns of integers (N, K) against the uniform distribution, (K,)."""
    counts = np.stack([np.bincount(column, minlength=n_classes) for column in classes.T])
    assert counts.shape[1] == n_classes  # nothing outside
    expected = len(classes) / n_classes
    return ((counts - expected) ** 2 / expected).sum(1)


def upper_quantile(dof):
    """Of chi-square, that one in 100,000 exceeds (Wilson and Hilferty 1931)."""
    return dof * (1 - 2 / (9 * dof) + 4.265 * (2 / (9 * dof)) ** 0.5) ** 3


def test_candidates_are_uniform_between_the_bounds():
    n, n_bins = 20_000, 20
    _, candidates = decide(SPACES[0], n, n_envs=2)
    assert candidates.shape == (2, n, H, 3)
    assert (candidates >= torch.as_tensor(LOW)).all()
    assert (candidates <= torch.as_tensor(HIGH)).all()
    share = ((candidates.double().numpy() - LOW) / (HIGH - LOW)).clip(0, 1 - 1e-9)
    bins = (n_bins * share).astype(int).transpose(1, 0, 2, 3).reshape(n, -1)  # a column for each number of a row
    assert (chi_square(bins, n_bins) < upper_quantile(n_bins - 1)).all()


@pytest.mark.parametrize("space", SPACES[1:], ids=["Discrete", "MultiDiscrete"])
def test_choices_are_uniform(space):
    n = 20_000
    _, candidates = decide(space, n, n_envs=2)
    for i, n_choices in enumerate(np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)):
        classes = candidates[..., i].transpose(0, 1).reshape(n, -1).numpy()
        assert (chi_square(classes, n_choices) < upper_quantile(n_choices - 1)).all()


@in_all_spaces
def test_numbers_are_independent(space):
    n = 20_000
    _, candidates = decide(space, n, n_envs=2)
    correlation = np.corrcoef(candidates.transpose(0, 1).reshape(n, -1).double().numpy().T)
    np.testing.assert_allclose(correlation, np.eye(len(correlation)), atol=5 / n**0.5)
    consecutive = candidates[:, :, 0, 0].double().numpy()  # one candidate to the next
    assert abs(np.corrcoef(consecutive[0, 1:], consecutive[0, :-1])[0, 1]) < 5 / n**0.5


@in_all_spaces
def test_the_best_candidate_is_chosen(space):
    plan, candidates = decide(space, 200)
    scores = score(candidates)
    for i in range(E):
        best = max(range(200), key=lambda j: scores[i, j].item())
        assert torch.equal(plan.actions[i], candidates[i, best])
        assert plan.score[i] == scores[i, best]
    assert torch.equal(plan.best_scores, plan.score.unsqueeze(0))


def test_of_equals_the_first_is_chosen():
    plan, candidates = decide(SPACES[0], 50, lambda x: torch.zeros(x.shape[:2]))
    assert torch.equal(plan.actions, candidates[:, 0])


def test_an_environment_in_which_all_but_one_fail_gets_that_one():
    finite = torch.tensor([7, 0, 49, 20])
    plan, candidates = decide(
        SPACES[0], 50, lambda x: torch.where(torch.arange(50) == finite.unsqueeze(1), -1e9, torch.nan)
    )
    assert torch.equal(plan.actions, candidates[torch.arange(E), finite])


@in_all_spaces
def test_proposals_compete(space):
    proposals = torch.tensor(np.stack([[[space.sample()] * H] * 2] * E)).view(E, 2, H, -1)
    if isinstance(space, spaces.Box):
        proposals = proposals.float()
    needle = lambda x: 1.0 * (x == proposals[:, 1:]).all(-1).all(-1)  # noqa: E731
    plan, candidates = decide(space, 3, needle, proposals=proposals)
    assert candidates.shape[1] == 5
    assert torch.equal(plan.actions, proposals[:, 1])


@in_all_spaces
def test_nothing_is_remembered(space):
    planner = RandomShooting(space, RandomShootingConfig(horizon=H, n_samples=20))
    first = planner.plan(score, E, planner.initial_warm_start(E, CPU), seeded(5))
    assert list(first.warm_start.get_keys()) == []
    after, fresh = (planner.plan(score, E, memory, seeded()) for memory in (first.warm_start, Batch()))
    assert torch.equal(after.actions, fresh.actions)


def test_the_generator_goes_on_from_one_decision_to_the_next():
    planner, generator = RandomShooting(SPACES[0], RandomShootingConfig(horizon=H, n_samples=20)), seeded()
    first, second = (planner.plan(score, E, Batch(), generator) for _ in range(2))
    assert (first.actions != second.actions).all(-1).all(-1).all()


def test_nothing_is_found_where_all_scores_are_not_finite():
    plan, _ = decide(SPACES[0], 20, lambda x: score(x) + torch.tensor([0, torch.nan, 0, -torch.inf]).unsqueeze(1))
    assert plan.found.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("name", "value"), [("horizon", 0), ("n_samples", 0), ("n_samples", -3)])
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        RandomShootingConfig(**{name: value})


def test_defaults_are_those_of_pets_on_half_cheetah():
    assert RandomShootingConfig() == RandomShootingConfig(horizon=30, n_samples=2500)
