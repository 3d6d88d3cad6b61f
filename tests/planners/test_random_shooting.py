"""Random shooting: candidates are independent, the best is chosen, and no state is kept. Uniform draws are tested in
test_action_spaces."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import RandomShooting, RandomShootingConfig
from tests.planners.plain import CPU, Recorder, seeded

E, H = 4, 5
LOW, HIGH = np.array([-1.0, 0.2, -30.0], np.float32), np.array([0.5, 0.3, 70.0], np.float32)
SPACES = [spaces.Box(LOW, HIGH), spaces.Discrete(4), spaces.MultiDiscrete([3, 2, 5])]
in_all_spaces = pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)


def score(candidates):
    """Differs between environments."""
    weights = torch.linspace(-1, 1, len(candidates) * H).view(len(candidates), 1, H, 1)
    return (weights * (candidates.float() + 0.3).sin()).sum((-1, -2))


def decide(space, n_samples, function=score, *, n_envs=E, seed=0, proposals=None):
    """A plan, and the candidates that were scored."""
    planner = RandomShooting(space, RandomShootingConfig(horizon=H, n_samples=n_samples))
    recorder = Recorder(function)
    plan = planner.plan(recorder, n_envs, planner.initial_warm_start(n_envs, CPU), seeded(seed), proposals)
    assert len(recorder.shown) == 1
    return plan, recorder.shown[0]


@in_all_spaces
def test_numbers_are_independent(space):
    n = 5000
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


def test_the_only_finite_candidate_is_chosen():
    finite = torch.tensor([7, 0, 49, 20])
    plan, candidates = decide(
        SPACES[0], 50, lambda x: torch.where(torch.arange(50) == finite.unsqueeze(1), -1e9, torch.nan)
    )
    assert torch.equal(plan.actions, candidates[torch.arange(E), finite])


@in_all_spaces
def test_no_state_is_kept(space):
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


def test_defaults_are_those_of_pets_on_half_cheetah():
    assert RandomShootingConfig() == RandomShootingConfig(horizon=30, n_samples=2500)
