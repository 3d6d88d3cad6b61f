"""MPPI against the algorithm (Williams et al. 2017, DADS, TD-MPC2), in plain numpy, one environment at a time."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import MPPI, MPPIConfig
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
    flat,
    middle,
    seeded,
)

E, H, A = 3, 6, 2
SETTINGS = {"horizon": H, "n_samples": 24, "n_iterations": 4, "temperature": 0.5, "adapt_std": False}
# shared/ALGORITHMS.md, B.4: covariance 1.5, gamma 10, which is one over the temperature.
DADS = {
    "n_samples": 30,  # 50 in the paper
    "n_iterations": 4,  # 10 in the paper
    "temperature": 0.1,
    "temperature_unit": "score",
    "init_std": 1.5**0.5,
    "adapt_std": False,
    "smoothing": 0.9,
}
# F.1: exp(0.5 (V - max V)) over the elites, deviation in [0.05, 2].
TD_MPC2 = {
    "horizon": 3,
    "n_samples": 64,  # 512 in the paper
    "n_iterations": 6,
    "n_elites": 8,  # 64 in the paper
    "temperature": 2.0,
    "temperature_unit": "score",
    "init_std": 2.0,
    "min_std": 0.05,
    "adapt_std": True,
    "execute": "sample",
}
SWITCHES = [
    {},
    {"execute": "best"},
    {"execute": "sample"},
    {"temperature_unit": "score", "temperature": 3.0},
    {"n_elites": 1},
    {"n_elites": 24, "execute": "sample"},
    {"adapt_std": True, "min_std": 0.3, "n_elites": 5},
    {"adapt_std": True, "momentum": 0.4},
    {"momentum": 1.0},
    {"smoothing": 0.7, "noise_exponent": 1.0, "adapt_std": True},
    {"smoothing": 1.0},
    {"init_std": 5.0},
    DADS,
    TD_MPC2,
]


def reference(config, evaluate, noise, draws, mean, proposals=()):
    """One decision (shared/ALGORITHMS.md, B.4 and F.1).

    Args:
        config: Settings.
        evaluate: Scores of sequences (N, H, A); the higher, the better.
        noise: For each iteration (N, H, A).
        draws: For each iteration a number in [0, 1) that decides which elite is drawn; empty if none is.
        mean: To start from, (H, A).
        proposals: Sequences (H, A), which compete in every iteration and are scored in the first.

    Returns:
        The chosen sequence, the final mean, the pools that were evaluated, the best scores.
    """
    first_std = np.tile(config.init_std * (HIGH - LOW) / 2, (len(mean), 1))
    std, pools, best_scores, chosen = first_std, [], [], None
    for i in range(config.n_iterations):
        pool = [np.clip(mean + std * e, LOW, HIGH) for e in noise[i]]
        for z in pool:
            for t in range(1, len(mean)):
                z[t] = config.smoothing * z[t - 1] + (1 - config.smoothing) * z[t]
        n_shown = len(pool) + (len(proposals) if i == 0 else 0)
        pool += [np.clip(x, LOW, HIGH) for x in proposals]
        scores = evaluate(np.stack(pool))
        pools.append(np.stack(pool)[:n_shown])
        pool = np.stack(pool)
        order = best_finite(scores, config.n_elites)
        elites, elite_scores = pool[order], scores[order]
        unit = 1.0 if config.temperature_unit == "score" else elite_scores.std()
        weights = np.exp((elite_scores - elite_scores.max()) / (config.temperature * unit)) if unit else np.ones(1)
        weights = weights / weights.sum()
        new_mean = sum(w * x for w, x in zip(weights, elites, strict=True))
        new_std = np.sqrt(sum(w * (x - new_mean) ** 2 for w, x in zip(weights, elites, strict=True)))
        mean = config.momentum * mean + (1 - config.momentum) * new_mean
        if config.adapt_std:
            std = config.momentum * std + (1 - config.momentum) * new_std
            std = np.clip(std, first_std * config.min_std / config.init_std, first_std)
        chosen = elites[0]
        if config.execute == "sample":
            chosen = elites[np.searchsorted(weights.cumsum(), draws[i])]
        best_scores.append(elite_scores[0])
    return mean if config.execute == "mean" else chosen, mean, pools, best_scores


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=5e-5)


def compare(config, numbers, starts, objective=bumpy, proposals=None):
    """One decision of the library and of the reference; returns the warm start."""
    numbers.clear()
    recorder = by_row(objective)
    memory = Batch(center=torch.tensor(np.stack(starts), dtype=torch.float32))
    plan = MPPI(SPACE, config).plan(recorder, E, memory, torch.Generator(), proposals)
    for i in range(E):
        actions, mean, pools, best_scores = reference(
            config,
            lambda x, i=i: objective(i, x),
            [drawn[i] for drawn in numbers.noise],
            [drawn[i].item() for drawn in numbers.uniform],
            starts[i],
            () if proposals is None else proposals[i].double().numpy(),
        )
        for candidates, pool in zip(recorder.shown, pools, strict=True):
            close(candidates[i], pool)
        close(plan.actions[i], actions)
        np.testing.assert_allclose(plan.best_scores[:, i].numpy(), best_scores, rtol=1e-4, atol=1e-4)
        close(plan.score[i], plan.best_scores[-1, i])
        close(plan.warm_start.center[i], np.concatenate([mean[1:], [(LOW + HIGH) / 2]]))
    return plan.warm_start


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_decisions_are_those_of_the_reference(numbers, settings):
    config = MPPIConfig(**SETTINGS | settings)
    starts = [middle(config.horizon)] * E
    for _ in range(3):
        starts = list(compare(config, numbers, starts).center.double().numpy())


@pytest.mark.parametrize("settings", [{"smoothing": 0.5}, TD_MPC2], ids=str)
def test_proposals_compete_in_every_iteration(numbers, settings):
    config = MPPIConfig(**SETTINGS | settings)
    proposals = torch.randn(E, 24, config.horizon, A, generator=torch.Generator().manual_seed(0))
    compare(config, numbers, [middle(config.horizon)] * E, bumpy, proposals)


@pytest.mark.parametrize(
    ("n_elites", "unit", "few"), [(5, "score", False), (20, "spread", True), (None, "score", True)]
)
def test_scores_that_are_not_finite_have_no_weight(numbers, n_elites, unit, few):
    objective = HalfFailing(bumpy)
    settings = {"n_elites": n_elites, "temperature_unit": unit, "adapt_std": True, "execute": "sample"}
    compare(MPPIConfig(**SETTINGS | settings), numbers, [middle(H)] * E, objective)
    assert min(objective.n_finite) > 0
    assert any(n < (n_elites or 24) for n in objective.n_finite) == few  # else this test shows nothing


# Powers of two, which change no digit.
@pytest.mark.parametrize("factor", [2.0**-80, 2.0**80])
@pytest.mark.parametrize("n_elites", [None, 10])
def test_in_units_of_the_spread_the_scale_of_scores_does_not_matter(factor, n_elites):
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | {"n_elites": n_elites, "temperature": 0.5}))
    plain, scaled = (
        planner.plan(lambda x: f * x.sin().sum((-1, -2)), E, planner.initial_warm_start(E, CPU), seeded())  # noqa: B023
        for f in (1.0, factor)
    )
    torch.testing.assert_close(scaled.actions, plain.actions)
    torch.testing.assert_close(scaled.score, factor * plain.score)


@pytest.mark.parametrize("unit", ["score", "spread"])
def test_equal_scores_have_equal_weights(unit):
    recorder = Recorder(flat)
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | {"temperature_unit": unit, "n_iterations": 1}))
    plan = planner.plan(recorder, E, planner.initial_warm_start(E, CPU), seeded())
    torch.testing.assert_close(plan.actions, recorder.shown[0].mean(1))


@pytest.mark.parametrize("unit", ["score", "spread"])
@pytest.mark.parametrize(("low", "high"), [(-1e6, 1.0), (-3.4e38, 1.0), (-3.4e38, 3.4e38)])
def test_extremely_low_finite_scores_have_no_weight(unit, low, high):
    # A model that blows up gives such scores before it gives infinite ones.
    settings = {"temperature_unit": unit, "temperature": 0.1, "n_iterations": 1}
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | settings))
    recorder = Recorder(lambda x: torch.where(x[:, :, 0, 0] > 0, low, high))
    plan = planner.plan(recorder, E, planner.initial_warm_start(E, CPU), seeded())
    candidates = recorder.shown[0]
    expected = torch.stack([rows[rows[:, 0, 0] <= 0].mean(0) for rows in candidates])
    torch.testing.assert_close(plan.actions, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("slope", "unit"), [(-100, "score"), (100, "spread")])
def test_a_refitted_standard_deviation_keeps_its_limits(slope, unit):
    recorder = Recorder(lambda x: slope * x.square().sum((-1, -2)))  # a sharp peak, or elites that are far apart
    settings = {"n_samples": 4000, "n_elites": 1000, "adapt_std": True, "temperature_unit": unit}
    planner = MPPI(spaces.Box(-100.0, 100.0, (A,)), MPPIConfig(**SETTINGS | settings, init_std=0.01, min_std=0.001))
    planner.plan(recorder, 2, planner.initial_warm_start(2, CPU), seeded())
    std = recorder.shown[-1].std(1)
    assert ((std > 0.094) & (std < (0.106 if slope < 0 else 1.06))).all()
    assert slope < 0 or std.max() > 0.94  # 0.1 and 1, but for sampling


@pytest.mark.parametrize("settings", [DADS, TD_MPC2], ids=["DADS", "TD-MPC2"])
def test_other_environments_do_not_matter_to_the_bit(settings):
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | settings))
    target = torch.linspace(-0.4, 0.4, 8)[:, None, None, None]
    memory = planner.initial_warm_start(8, CPU)
    plan = planner.plan(lambda x: -(x - target).square().sum((-1, -2)), 8, memory, seeded())
    changed = target.clone()
    changed[5], changed[2] = -0.9, torch.nan
    other = planner.plan(lambda x: -(x - changed).square().sum((-1, -2)), 8, memory, seeded())
    assert other.found.tolist() == [row != 2 for row in range(8)]
    same = [torch.equal(x, y) for x, y in zip(plan.actions, other.actions, strict=True)]
    assert same == [row not in (2, 5) for row in range(8)]


def test_choices_are_refitted_by_weight():
    values, temperature = torch.tensor([0.0, 1.0, 3.0]), 2.0
    settings = {"n_samples": 50_000, "temperature": temperature, "temperature_unit": "score", "uniform_share": 1.0}
    planner = MPPI(spaces.Discrete(3), MPPIConfig(horizon=2, n_iterations=1, **settings))
    plan = planner.plan(lambda x: values[x[:, :, 1, 0]], 1, planner.initial_warm_start(1, CPU), seeded())
    # Boltzmann probabilities, of the second action; then a step on, and the new one is uniform.
    boltzmann = (values / temperature).exp() / (values / temperature).exp().sum()
    torch.testing.assert_close(plan.warm_start.center[0, 0, 0], boltzmann, rtol=0, atol=0.01)
    torch.testing.assert_close(plan.warm_start.center[0, 1, 0], torch.full((3,), 1 / 3))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])])
def test_choices_cannot_be_smoothed(space):
    with pytest.raises(ValueError, match=r"smoothing is 0\.9, expected 0 for .*noise_exponent"):
        MPPI(space, MPPIConfig(smoothing=0.9))
