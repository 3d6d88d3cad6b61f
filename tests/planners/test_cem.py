"""The cross-entropy method against the released PETS code's algorithm, in plain numpy, one environment at a time."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import CEM, CEMConfig
from tests.planners.plain import (
    CPU,
    HIGH,
    LOW,
    SPACE,
    HalfFailing,
    best_finite,
    by_row,
    fill_up,
    middle,
    seeded,
)

E, H, A = 4, 5, 2
SETTINGS = {"horizon": H, "n_samples": 30, "n_iterations": 6, "n_elites": 6, "stop_variance": 0.0}


def truncated_normal(uniform):
    """Standard normal numbers cut off at two, by inverse transform of uniform ones."""
    normal = NormalDist()
    tail = normal.cdf(-2)
    return np.vectorize(normal.inv_cdf)(tail + (1 - 2 * tail) * uniform)


def reference(config, evaluate, uniform, mean, proposals=()):
    """One decision (shared/ALGORITHMS.md, A.3).

    Args:
        config: Settings.
        evaluate: Scores of sequences (N, H, A); the higher, the better.
        uniform: For each iteration (N, H, A), in [0, 1).
        mean: To start from, (H, A).
        proposals: Sequences (H, A), which compete in every iteration and are scored in the first.

    Returns:
        The final mean, the best of the last iteration, the pools that were evaluated, the best scores.
    """
    variance = np.tile((config.init_std * (HIGH - LOW) / 2) ** 2, (H, 1))
    best, pools, best_scores = mean, [], []
    for i in range(config.n_iterations):
        if variance.max() <= config.stop_variance:
            break
        constrained = np.minimum(np.minimum(((mean - LOW) / 2) ** 2, ((HIGH - mean) / 2) ** 2), variance)
        pool = list(mean + np.sqrt(constrained) * truncated_normal(uniform[i]))
        n_shown = len(pool) + (len(proposals) if i == 0 else 0)
        pool = np.stack(pool + [np.clip(x, LOW, HIGH) for x in proposals])
        scores = evaluate(pool)
        pools.append(pool[:n_shown])
        order = best_finite(scores, config.n_elites)
        elites = pools[-1][fill_up(order, config.n_elites)]
        mean = config.momentum * mean + (1 - config.momentum) * elites.mean(0)
        variance = config.momentum * variance + (1 - config.momentum) * elites.var(0)
        best = elites[0]
        best_scores.append(scores[order[0]])
    return mean, best, pools, best_scores


def score_of(env_id, sequences):
    """The larger the environment's index, the sharper the peak (N, H, A) -> (N,), in numpy or torch."""
    return -(4.0**env_id) * ((sequences - 0.1 * env_id) ** 2).sum((-1, -2))


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=2e-5)


def compare(config, numbers, starts, proposals=None, objective=score_of):
    """One decision of the library and of the reference; returns both final means and each row's iterations."""
    numbers.clear()
    recorder = by_row(objective)
    memory = Batch(center=torch.tensor(np.stack(starts), dtype=torch.float32))
    plan = CEM(SPACE, config).plan(recorder, E, memory, torch.Generator(), proposals)
    means, n_iterations = [], []
    for i in range(E):
        suggested = () if proposals is None else proposals[i].double().numpy()
        draws = [drawn[i] for drawn in numbers.uniform]
        mean, best, pools, best_scores = reference(config, lambda x, i=i: objective(i, x), draws, starts[i], suggested)
        for candidates, pool in zip(recorder.shown, pools, strict=False):  # the library goes on for the others
            close(candidates[i], pool)
        close(plan.actions[i], best if config.execute == "best" else mean)
        close(plan.best_scores[: len(best_scores), i], best_scores)
        close(plan.best_scores[len(best_scores) :, i], best_scores[-1])  # and then does not move any more
        close(plan.score[i], best_scores[-1])
        close(plan.warm_start.center[i][:-1], mean[1:])
        means.append(mean)
        n_iterations.append(len(pools))
    return plan, means, n_iterations


@pytest.mark.parametrize(
    "settings",
    [{}, {"execute": "best"}, {"momentum": 0.5, "init_std": 0.2}, {"n_iterations": 1}, {"n_elites": 1}],
    ids=str,
)
def test_decisions_are_those_of_the_reference(numbers, settings):
    config = CEMConfig(**SETTINGS | settings)
    starts = [middle(H)] * E
    for _ in range(3):
        plan, _, n_iterations = compare(config, numbers, starts)
        assert n_iterations == [config.n_iterations] * E
        starts = list(plan.warm_start.center.double().numpy())


def test_proposals_compete_in_every_iteration(numbers):
    proposals = torch.randn(E, 3, H, A, generator=seeded())
    compare(CEMConfig(**SETTINGS), numbers, [middle(H)] * E, proposals)


@pytest.mark.parametrize(("n_elites", "execute", "few"), [(5, "mean", False), (25, "best", True)])
def test_scores_that_are_not_finite_do_not_count(numbers, n_elites, execute, few):
    objective = HalfFailing(score_of)
    config = CEMConfig(**SETTINGS | {"n_elites": n_elites, "execute": execute})
    compare(config, numbers, [middle(H)] * E, None, objective)
    assert min(objective.n_finite) > 0
    assert any(n < n_elites for n in objective.n_finite) == few  # else this test shows nothing


@pytest.mark.parametrize("execute", ["best", "mean"])
def test_each_environment_stops_when_its_own_variance_is_small(numbers, execute):
    config = CEMConfig(**SETTINGS | {"stop_variance": 0.03, "n_iterations": 12, "execute": execute})
    rng = np.random.default_rng(5)
    _, _, n_iterations = compare(config, numbers, [rng.uniform(LOW, HIGH, (H, A)) for _ in range(E)])
    assert len(set(n_iterations)) > 1  # else this test shows nothing
    assert 1 < min(n_iterations) < 12


def test_a_search_that_stops_late_does_not_move_one_that_stopped():
    config = CEMConfig(**SETTINGS | {"stop_variance": 0.01, "n_iterations": 20})
    planner = CEM(SPACE, config)
    factor = torch.tensor([1.0, 1.0, 0.0, 0.0]).unsqueeze(1)  # flat: does not converge
    plans = [
        planner.plan(lambda x: f * by_row(score_of)(x), E, planner.initial_warm_start(E, CPU), seeded())  # noqa: B023
        for f in (factor, torch.ones(E, 1))
    ]
    assert torch.equal(plans[0].actions[:2], plans[1].actions[:2])


def test_the_warm_start_is_the_mean_shifted_by_one_with_an_action_of_zero():
    planner = CEM(spaces.Box(-1.0, 1.0, (A,)), CEMConfig(**SETTINGS | {"execute": "mean"}))
    plan = planner.plan(by_row(score_of), E, planner.initial_warm_start(E, CPU), torch.Generator())
    assert torch.equal(plan.warm_start.center[:, :-1], plan.actions[:, 1:])
    assert (plan.warm_start.center[:, -1] == 0).all()
