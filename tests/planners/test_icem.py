"""iCEM against the algorithm as its paper's code has it, in plain numpy, one environment at a time."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import ICEM, ICEMConfig
from tests.planners.plain import (
    CPU,
    HIGH,
    LOW,
    SPACE,
    HalfFailing,
    Recorder,
    best_finite,
    bumpy,
    by_row,
    fill_up,
    flat,
    middle,
    seeded,
)

E, H, A = 3, 6, 2
SETTINGS = {"horizon": H, "n_samples": 24, "n_iterations": 3, "n_elites": 8, "reuse_fraction": 0.4}
SWITCHES = [
    {},
    {"keep_elites": False},
    {"shift_elites": False},
    {"add_mean": False},
    {"keep_elites": False, "shift_elites": False, "add_mean": False},
    {"reuse_fraction": 0.0},
    {"execute": "mean"},
    {"decay": 1.0},
    {"n_samples": 60, "n_iterations": 6},
    {"n_iterations": 1, "add_mean": False},
    {"momentum": 0.6, "init_std": 0.2},
    {"n_elites": 1, "reuse_fraction": 1.0},
]


def reference(config, evaluate, noise, history, proposals=()):
    """One decision (shared/ALGORITHMS.md, D.1).

    Args:
        config: Settings.
        evaluate: Scores of sequences (N, H, A); the higher, the better.
        noise: For each iteration (n, H, A).
        history: Mean (H, A) and elites (k, H, A) to start from, one step on already for the mean; None if fresh.
        proposals: Sequences (H, A).

    Returns:
        The chosen sequence, the final mean and the best elites, the pools that were evaluated, the best scores.
    """
    n_reused = int(config.reuse_fraction * config.n_elites)
    mean = middle(H) if history is None else history[0]
    std = np.tile(config.init_std * (HIGH - LOW) / 2, (H, 1))
    n, pools, best_scores = config.n_samples, [], []
    elites, elite_scores = np.empty((0, H, A)), np.empty(0)
    for i in range(config.n_iterations):
        if i > 0:
            n = max(2 * config.n_elites, int(n / config.decay))
        assert len(noise[i]) == n
        pool = [np.clip(mean + std * e, LOW, HIGH) for e in noise[i]]
        if i == config.n_iterations - 1 and config.add_mean:
            pool[0] = mean
        if i == 0 and history is not None and config.shift_elites:
            # The last action is drawn from the current distribution: that of a sample.
            pool += [np.concatenate([old[1:], pool[j][-1:]]) for j, old in enumerate(history[1][:n_reused])]
        if i == 0:
            pool += [np.clip(x, LOW, HIGH) for x in proposals]
        pools.append(np.stack(pool))
        scores = evaluate(pools[-1])
        if i > 0 and config.keep_elites:  # with the scores that they had
            pool += list(elites[:n_reused])
            scores = np.concatenate([scores, elite_scores[:n_reused]])
        order = best_finite(scores, config.n_elites)
        elites = np.stack(pool)[fill_up(order, config.n_elites)]
        elite_scores = np.concatenate([scores[order], np.full(config.n_elites - len(order), np.nan)])
        mean = (1 - config.momentum) * elites.mean(0) + config.momentum * mean
        std = (1 - config.momentum) * elites.std(0) + config.momentum * std
        best_scores.append(elite_scores[0])
    return elites[0] if config.execute == "best" else mean, mean, elites[:n_reused], pools, best_scores


def reference_history(mean, elites):
    """Warm start of the next decision: the mean shifted by one step, its last entry duplicated."""
    return np.concatenate([mean[1:], mean[-1:]]), elites


def some_history(planner, seed=7):
    """A warm start in the middle of an episode."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(LOW, HIGH, (E, H, A))
    elites = rng.uniform(LOW, HIGH, (E, planner.n_reused, H, A))
    memory = Batch(
        center=torch.tensor(mean, dtype=torch.float32),
        elites=torch.tensor(elites, dtype=torch.float32),
        fresh=torch.zeros(E, dtype=torch.bool),
    )
    return memory, list(zip(mean, elites, strict=True))


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=2e-5)


def compare(planner, memory, histories, numbers, proposals=None, objective=bumpy):
    """One decision of the library and of the reference; returns what both go on from."""
    numbers.clear()
    recorder = by_row(objective)
    plan = planner.plan(recorder, E, memory, torch.Generator(), proposals)
    new_histories = []
    for i in range(E):
        actions, mean, elites, pools, best_scores = reference(
            planner.config,
            lambda x, i=i: objective(i, x),
            [drawn[i] for drawn in numbers.noise],
            histories[i],
            () if proposals is None else proposals[i].double().numpy(),
        )
        for candidates, pool in zip(recorder.shown, pools, strict=True):
            if histories[i] is not None:  # else the library may look at more, as long as nothing comes of it
                close(candidates[i], pool)
            close(candidates[i][: planner.config.n_samples], pool[: planner.config.n_samples])
        close(plan.actions[i], actions)
        close(plan.best_scores[:, i], best_scores)
        close(plan.score[i], best_scores[-1])
        new_histories.append(reference_history(mean, elites))
    return plan.warm_start, new_histories


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_decisions_with_a_history_are_those_of_the_reference(numbers, settings):
    planner = ICEM(SPACE, ICEMConfig(**SETTINGS | settings))
    memory, histories = some_history(planner)
    for _ in range(3):
        memory, histories = compare(planner, memory, histories, numbers)


def test_proposals_are_those_of_the_reference(numbers):
    planner = ICEM(SPACE, ICEMConfig(**SETTINGS))
    memory, histories = some_history(planner)
    proposals = torch.randn(E, 4, H, A, generator=seeded())
    for _ in range(2):
        memory, histories = compare(planner, memory, histories, numbers, proposals)


@pytest.mark.parametrize(
    ("settings", "few"),
    [
        ({"n_elites": 3}, False),
        ({"n_elites": 50}, True),
        ({"n_elites": 50, "execute": "mean", "keep_elites": False, "add_mean": False}, True),
    ],
    ids=str,
)
def test_scores_that_are_not_finite_do_not_count(numbers, settings, few):
    objective = HalfFailing(bumpy)
    planner = ICEM(SPACE, ICEMConfig(**SETTINGS | {"n_samples": 100} | settings))
    memory, histories = planner.initial_warm_start(E, CPU), [None] * E
    for _ in range(3):
        memory, histories = compare(planner, memory, histories, numbers, None, objective)
    assert min(objective.n_finite) > 0
    assert any(n < settings["n_elites"] for n in objective.n_finite) == few  # else this test shows nothing


# Placeholders of elites, which give all rows equally many candidates, must not count.
@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_decisions_of_fresh_environments_are_those_of_the_reference(numbers, settings):
    planner = ICEM(SPACE, ICEMConfig(**SETTINGS | settings))
    memory, histories = planner.initial_warm_start(E, CPU), [None] * E
    memory, histories = compare(planner, memory, histories, numbers)
    fresh = planner.initial_warm_start(1, CPU)
    for key in memory.get_keys():
        memory[key][1] = fresh[key][0]
    histories[1] = None
    compare(planner, memory, histories, numbers)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"n_samples": 40, "n_elites": 10}, [40, 32, 25]),  # the paper's budget of 100
        ({"n_samples": 40, "n_elites": 10, "n_iterations": 6}, [40, 32, 25, 20, 20, 20]),
        ({"n_samples": 100, "n_elites": 10, "decay": 2.0, "n_iterations": 4}, [100, 50, 25, 20]),
        ({"n_samples": 30, "n_elites": 5, "decay": 1.0}, [30, 30, 30]),
        ({"n_samples": 12, "n_elites": 10}, [12, 12, 12]),  # never grows
    ],
)
def test_population_schedule(settings, expected):
    recorder = by_row(bumpy)
    planner = ICEM(SPACE, ICEMConfig(**SETTINGS | {"shift_elites": False} | settings))
    planner.plan(recorder, E, planner.initial_warm_start(E, CPU), torch.Generator())
    assert [candidates.shape[1] for candidates in recorder.shown] == expected


@pytest.mark.parametrize("keep_elites", [True, False])
def test_elites_that_are_kept_keep_their_scores(keep_elites):
    calls = []

    def worse_every_time(candidates):
        calls.append(candidates.clone())
        return by_row(bumpy)(candidates) - 1000.0 * (len(calls) - 1)

    planner = ICEM(SPACE, ICEMConfig(**SETTINGS | {"keep_elites": keep_elites}))
    memory, _ = some_history(planner)
    plan = planner.plan(worse_every_time, E, memory, torch.Generator())
    first_best = by_row(bumpy)(calls[0]).max(1)
    if keep_elites:
        torch.testing.assert_close(plan.best_scores, first_best.values.expand(3, E))
        assert torch.equal(plan.actions, calls[0][range(E), first_best.indices])
    else:
        assert (plan.score < -1000).all()


def test_with_one_iteration_the_mean_that_wins_is_the_warm_start():
    planner = ICEM(SPACE, ICEMConfig(**SETTINGS | {"n_iterations": 1}))
    memory, _ = some_history(planner)
    assert torch.equal(planner.plan(flat, E, memory, seeded()).actions, memory.center)


def test_warm_starts_of_discrete_actions_duplicate_the_last_probabilities_and_shift_elites():
    space = spaces.MultiDiscrete([3, 2])
    planner = ICEM(space, ICEMConfig(**SETTINGS | {"execute": "mean", "noise_exponent": 2.0}))
    recorder = Recorder(lambda x: -x.float().square().sum((-1, -2)))
    plan = planner.plan(recorder, E, planner.initial_warm_start(E, CPU), seeded())
    memory = plan.warm_start
    assert torch.equal(memory.center[:, :-1].argmax(-1), plan.actions[:, 1:])
    assert torch.equal(memory.center[:, -1], memory.center[:, -2])
    recorder.shown.clear()
    planner.plan(recorder, E, memory, seeded(1))
    shifted = recorder.shown[0][:, 24:]
    assert shifted.shape[1] == planner.n_reused == 3
    assert torch.equal(shifted[:, :, :-1], memory.elites[:, :, 1:])
