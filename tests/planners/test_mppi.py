"""MPPI against the algorithm (Williams et al. 2017, DADS, TD-MPC2), in plain numpy, one environment at a time."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

import layeredrl.planners.gaussian as gaussian_module
from layeredrl.planners import MPPI, MPPIConfig

CPU = torch.device("cpu")
E, H, A = 3, 6, 2
LOW, HIGH = np.array([-1.0, -0.4]), np.array([0.5, 1.2])
SPACE = spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32))
SETTINGS = {"horizon": H, "n_samples": 24, "n_iterations": 4, "temperature": 0.5, "adapt_std": False}
# shared/ALGORITHMS.md, B.4: covariance 1.5, gamma 10, which is one over the temperature.
DADS = {
    "n_samples": 50,
    "n_iterations": 10,
    "temperature": 0.1,
    "temperature_unit": "score",
    "init_std": 1.5**0.5,
    "adapt_std": False,
    "smoothing": 0.9,
}
# F.1: exp(0.5 (V - max V)) over the elites, deviation in [0.05, 2].
TD_MPC2 = {
    "horizon": 3,
    "n_samples": 512,
    "n_iterations": 6,
    "n_elites": 64,
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
    {"n_elites": 8},
    {"n_elites": 1},
    {"n_elites": 24, "execute": "sample"},
    {"adapt_std": True},
    {"adapt_std": True, "min_std": 0.3, "n_elites": 5},
    {"adapt_std": True, "momentum": 0.4},
    {"momentum": 1.0},
    {"smoothing": 0.7},
    {"smoothing": 0.7, "noise_exponent": 1.0, "adapt_std": True},
    {"smoothing": 1.0},
    {"n_iterations": 1},
    {"init_std": 5.0},
    DADS,
    TD_MPC2,
]


def score_of(env_id, sequences):
    """A bumpy objective (N, H, A) -> (N,), another one for each environment, in numpy or torch."""
    sin = torch.sin if isinstance(sequences, torch.Tensor) else np.sin
    return (sin(3 * sequences[..., 0] + env_id) - 2 * (sequences[..., 1] - 0.2 * env_id) ** 2).sum(-1)


def half_failing(env_id, sequences):
    """`score_of`, but not finite where the first action is in the upper half."""
    where = torch.where if isinstance(sequences, torch.Tensor) else np.where
    failure = [float("nan"), float("inf"), -float("inf")][env_id % 3]
    return where(sequences[..., 0, 0] > -0.25, failure, score_of(env_id, sequences))


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
        counting = np.flatnonzero(np.isfinite(scores))
        order = counting[np.argsort(-scores[counting], kind="stable")][: config.n_elites]
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


class GivenNumbers:
    """In place of `colored_noise` and `torch.rand`: keeps what it drew."""

    def __init__(self, monkeypatch):
        self.rng = np.random.default_rng(0)
        self.noise, self.draws = [], []
        monkeypatch.setattr(gaussian_module, "colored_noise", self.draw_noise)
        monkeypatch.setattr(torch, "rand", self.draw)

    def draw_noise(self, shape, basis, generator):
        self.noise.append(self.rng.standard_normal(shape))
        return torch.tensor(self.noise[-1], dtype=torch.float32)

    def draw(self, shape, **_):
        self.draws.append(self.rng.uniform(size=shape))
        return torch.tensor(self.draws[-1], dtype=torch.float32)


@pytest.fixture
def numbers(monkeypatch):
    return GivenNumbers(monkeypatch)


class Recorder:
    def __init__(self, function):
        self.function, self.shown = function, []

    def __call__(self, candidates):
        self.shown.append(candidates.clone())
        return self.function(candidates)


def flat(candidates):
    return torch.zeros(candidates.shape[:2])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=5e-5)


def compare(config, numbers, starts, objective=score_of, proposals=None):
    """One decision of the library and of the reference; returns the warm start."""
    numbers.noise.clear()
    numbers.draws.clear()
    recorder = Recorder(lambda x: torch.stack([objective(i, rows) for i, rows in enumerate(x)]))
    memory = Batch(center=torch.tensor(np.stack(starts), dtype=torch.float32))
    plan = MPPI(SPACE, config).plan(recorder, E, memory, torch.Generator(), proposals)
    for i in range(E):
        actions, mean, pools, best_scores = reference(
            config,
            lambda x, i=i: objective(i, x),
            [drawn[i] for drawn in numbers.noise],
            [drawn[i].item() for drawn in numbers.draws],
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


def middle(horizon=H):
    return np.tile((LOW + HIGH) / 2, (horizon, 1))


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_decisions_are_those_of_the_reference(numbers, settings):
    config = MPPIConfig(**SETTINGS | settings)
    starts = [middle(config.horizon)] * E
    for _ in range(3):
        starts = list(compare(config, numbers, starts).center.double().numpy())


@pytest.mark.parametrize("settings", [{}, {"smoothing": 0.5}, TD_MPC2], ids=str)
def test_proposals_compete_in_every_iteration(numbers, settings):
    config = MPPIConfig(**SETTINGS | settings)
    proposals = torch.randn(E, 24, config.horizon, A, generator=torch.Generator().manual_seed(0))
    compare(config, numbers, [middle(config.horizon)] * E, score_of, proposals)


@pytest.mark.parametrize("unit", ["score", "spread"])
@pytest.mark.parametrize(("n_elites", "few"), [(5, False), (20, True), (None, True)])
def test_what_is_not_finite_has_no_weight(numbers, unit, n_elites, few):
    finite = []

    def counted(env_id, sequences):
        scores = half_failing(env_id, sequences)
        finite.append(int(np.isfinite(np.asarray(scores)).sum()))
        return scores

    settings = {"n_elites": n_elites, "temperature_unit": unit, "adapt_std": True, "execute": "sample"}
    compare(MPPIConfig(**SETTINGS | settings), numbers, [middle()] * E, counted)
    assert min(finite) > 0
    assert any(n < (n_elites or 24) for n in finite) == few  # else this test shows nothing


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("adapt_std", [False, True])
def test_a_quadratic_and_a_gaussian_make_a_gaussian(temperature, adapt_std):
    # exp(-(a - t)^2 / temperature) times N(0, s^2) is a Gaussian, of which everything is known.
    n, std, target = 200_000, 0.05 * 10, 0.4
    settings = {"temperature": temperature, "temperature_unit": "score", "init_std": 0.05, "min_std": 0.0}
    planner = MPPI(
        spaces.Box(-10.0, 10.0, (1,)),
        MPPIConfig(horizon=1, n_samples=n, n_iterations=2, adapt_std=adapt_std, **settings),
    )
    recorder = Recorder(lambda x: -(x - target).square().sum((-1, -2)))
    plan = planner.plan(recorder, 1, planner.initial_warm_start(1, CPU), seeded())
    precision = 1 / std**2 + 2 / temperature
    mean, deviation = 2 / temperature * target / precision, precision**-0.5
    second = recorder.shown[1].flatten()
    assert second.mean().item() == pytest.approx(mean, abs=0.01)
    assert second.std().item() == pytest.approx(deviation if adapt_std else std, rel=0.01)
    prior = deviation if adapt_std else std
    precision = 1 / prior**2 + 2 / temperature
    expected = (mean / prior**2 + 2 / temperature * target) / precision
    assert plan.actions.item() == pytest.approx(expected, abs=0.01)


def test_the_temperature_leads_from_the_best_to_the_average():
    recorder, start = Recorder(lambda x: x.sum((-1, -2))), Batch(center=torch.zeros(E, H, A))
    coldest, hottest = (
        MPPI(SPACE, MPPIConfig(**SETTINGS | {"n_iterations": 1, "temperature": t})).plan(recorder, E, start, seeded())
        for t in (1e-6, 1e6)
    )
    candidates = recorder.shown[0]
    best = candidates.sum((-1, -2)).argmax(1)
    torch.testing.assert_close(coldest.actions, candidates[torch.arange(E), best])
    torch.testing.assert_close(hottest.actions, candidates.mean(1))


# Powers of two, which change no digit.
@pytest.mark.parametrize("factor", [2.0**-80, 2.0**-20, 2.0**10, 2.0**80])
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
def test_an_offset_of_the_scores_does_not_matter(unit):
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | {"temperature_unit": unit}))
    plain, moved = (
        planner.plan(lambda x: x.sin().sum((-1, -2)) + offset, E, planner.initial_warm_start(E, CPU), seeded())  # noqa: B023
        for offset in (0.0, 64.0)
    )
    torch.testing.assert_close(moved.actions, plain.actions, rtol=0, atol=1e-4)


@pytest.mark.parametrize("unit", ["score", "spread"])
def test_where_everything_ties_all_count_the_same(unit):
    recorder = Recorder(flat)
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | {"temperature_unit": unit, "n_iterations": 1}))
    plan = planner.plan(recorder, E, planner.initial_warm_start(E, CPU), seeded())
    torch.testing.assert_close(plan.actions, recorder.shown[0].mean(1))


@pytest.mark.parametrize("unit", ["score", "spread"])
@pytest.mark.parametrize(("low", "high"), [(-1e6, 1.0), (-1e25, 1.0), (-3.4e38, 1.0), (-3.4e38, 3.4e38)])
def test_finite_scores_however_low_do_no_harm(unit, low, high):
    # A model that blows up gives such scores before it gives infinite ones.
    settings = {"temperature_unit": unit, "temperature": 0.1, "n_iterations": 1}
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | settings))
    recorder = Recorder(lambda x: torch.where(x[:, :, 0, 0] > 0, low, high))
    plan = planner.plan(recorder, E, planner.initial_warm_start(E, CPU), seeded())
    candidates = recorder.shown[0]
    expected = torch.stack([rows[rows[:, 0, 0] <= 0].mean(0) for rows in candidates])
    torch.testing.assert_close(plan.actions, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_iterations", [1, 2])
def test_elites_are_drawn_by_weight(n_iterations):
    n_envs, wanted = 30_000, torch.tensor([0.15, 0.5, 0.0, 0.3, 0.05])
    recorder = Recorder(lambda x: wanted.log().expand(x.shape[:2]))  # log 0: never
    settings = {"temperature": 1.0, "temperature_unit": "score", "execute": "sample"}
    planner = MPPI(
        spaces.Box(-1.0, 1.0, (1,)), MPPIConfig(horizon=2, n_samples=5, n_iterations=n_iterations, **settings)
    )
    plan = planner.plan(recorder, n_envs, planner.initial_warm_start(n_envs, CPU), seeded())
    drawn = (recorder.shown[-1] == plan.actions.unsqueeze(1)).all(-1).all(-1)  # (E, 5); of the last iteration
    single = drawn.sum(1) == 1  # clipping to the bounds made some candidates equal
    assert single.float().mean() > 0.99
    counts = drawn[single].sum(0)
    assert counts[2] == 0
    expected = wanted * counts.sum()
    chi_square = ((counts - expected).square() / expected)[wanted > 0].sum()
    assert chi_square < 16.27  # the 0.999 quantile for three degrees of freedom
    # Neighbouring environments draw independently.
    second = drawn[:, 1].float()
    assert abs(torch.corrcoef(torch.stack([second[1:], second[:-1]]))[0, 1]) < 5 / n_envs**0.5


def test_only_elites_are_drawn():
    recorder = Recorder(lambda x: torch.arange(24.0).expand(x.shape[:2]))
    settings = {"n_elites": 3, "temperature": 1e6, "execute": "sample", "n_iterations": 1}
    planner = MPPI(SPACE, MPPIConfig(**SETTINGS | settings))
    plan = planner.plan(recorder, 500, planner.initial_warm_start(500, CPU), seeded())
    drawn = (recorder.shown[0] == plan.actions.unsqueeze(1)).all(-1).all(-1)
    assert drawn.sum(0).nonzero().flatten().tolist() == [21, 22, 23]


def spread_of_the_last_iteration(score, **settings):
    recorder = Recorder(score)
    config = MPPIConfig(**SETTINGS | {"n_samples": 4000, "n_iterations": 3, "init_std": 0.01} | settings)
    planner = MPPI(spaces.Box(-100.0, 100.0, (A,)), config)
    planner.plan(recorder, 2, planner.initial_warm_start(2, CPU), seeded())
    return recorder.shown[-1].std(1)


def test_the_deviation_stays_unless_it_adapts():
    needle = lambda x: -100 * x.square().sum((-1, -2))  # noqa: E731
    torch.testing.assert_close(
        spread_of_the_last_iteration(needle, min_std=0.0), torch.ones(2, H, A), rtol=0, atol=0.06
    )
    narrow = spread_of_the_last_iteration(needle, min_std=0.001, adapt_std=True, temperature_unit="score")
    torch.testing.assert_close(narrow, torch.full((2, H, A), 0.1), rtol=0, atol=0.006)  # the lower limit
    extremes = lambda x: 100 * x.square().sum((-1, -2))  # noqa: E731
    wide = spread_of_the_last_iteration(extremes, min_std=0.0, adapt_std=True, n_elites=1000)
    assert (wide < 1.06).all()  # the upper limit, though the elites lie farther apart


def test_noise_is_smoothed_along_the_horizon():
    # From white noise: x_0 = e_0, x_i = b x_{i-1} + (1 - b) e_i.
    beta, variance = 0.6, [1.0]
    for _ in range(H - 1):
        variance.append(beta**2 * variance[-1] + (1 - beta) ** 2)
    spread = spread_of_the_last_iteration(flat, smoothing=beta, min_std=0.0, n_iterations=1)
    torch.testing.assert_close(spread, torch.tensor(variance).sqrt()[:, None].expand(2, H, A), rtol=0.06, atol=0)


def test_noise_is_coloured_along_the_horizon():
    jumps = []
    for exponent in (0.0, 2.0):
        recorder = Recorder(flat)
        settings = {"noise_exponent": exponent, "n_samples": 4000, "n_iterations": 1, "init_std": 0.01, "min_std": 0.0}
        planner = MPPI(spaces.Box(-100.0, 100.0, (A,)), MPPIConfig(**SETTINGS | settings))
        planner.plan(recorder, 1, planner.initial_warm_start(1, CPU), seeded())
        jumps.append(recorder.shown[0].diff(dim=2).var().item())
    assert jumps[0] == pytest.approx(2.0, abs=0.1)
    assert jumps[1] == pytest.approx(1.092, abs=0.05)  # 2 (1 - autocorrelation) of 1/f^2 over six steps


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
    settings = {"n_samples": 200_000, "temperature": temperature, "temperature_unit": "score", "uniform_share": 1.0}
    planner = MPPI(spaces.Discrete(3), MPPIConfig(horizon=2, n_iterations=1, **settings))
    plan = planner.plan(lambda x: values[x[:, :, 1, 0]], 1, planner.initial_warm_start(1, CPU), seeded())
    # Boltzmann probabilities, of the second action; then a step on, and the new one is uniform.
    boltzmann = (values / temperature).exp() / (values / temperature).exp().sum()
    torch.testing.assert_close(plan.warm_start.center[0, 0, 0], boltzmann, rtol=0, atol=0.01)
    torch.testing.assert_close(plan.warm_start.center[0, 1, 0], torch.full((3,), 1 / 3))


def test_a_start_is_the_middle_of_the_bounds():
    close(MPPI(SPACE, MPPIConfig(**SETTINGS)).initial_warm_start(E, CPU).center, np.stack([middle()] * E))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])])
def test_choices_cannot_be_smoothed(space):
    with pytest.raises(ValueError, match=r"smoothing is 0\.9, expected 0 for .*noise_exponent"):
        MPPI(space, MPPIConfig(smoothing=0.9))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("horizon", 0),
        ("n_samples", 0),
        ("n_iterations", 0),
        ("n_elites", 0),
        ("n_elites", 25),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature_unit", "reward"),
        ("init_std", 0.0),
        ("init_std", float("nan")),
        ("min_std", -0.1),
        ("uniform_share", 1.1),
        ("momentum", -0.1),
        ("momentum", 1.1),
        ("smoothing", -0.1),
        ("smoothing", 1.1),
        ("noise_exponent", -0.1),
        ("noise_exponent", float("nan")),
        ("execute", "median"),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}" if not isinstance(value, str) else f"{name} is '"):
        MPPIConfig(**SETTINGS | {name: value})


def test_a_number_of_elites_is_an_integer():
    with pytest.raises(TypeError, match=r"n_elites is 2\.5"):
        MPPIConfig(**SETTINGS | {"n_elites": 2.5})
