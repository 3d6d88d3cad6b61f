"""Diagnostics against closed forms, brute force and torch.distributions."""

import math
from itertools import pairwise

import pytest
import torch
from gymnasium.spaces import Box
from tianshou.data import Batch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from experiments.benchmarks.calibration import measure
from layeredrl.models.diagnostics import figures as figures_module
from layeredrl.models.diagnostics.figures import (
    draw_calibration,
    draw_disagreement,
    draw_open_loop,
    draw_predictions,
    panel_grid,
)
from layeredrl.models.diagnostics.measures import LEVELS, evaluate_disagreement, evaluate_one_step, evaluate_open_loop
from layeredrl.models.diagnostics.ranking import auroc, ranks, spearman
from layeredrl.world_model import Oracle
from tests.models.reference import K, M, S, inputs, linear_nets, log_prob, make_model, outputs

NOISE = torch.tensor([0.5, 0.02])
DRIFT = torch.tensor([0.3, 0.1])
PLANE, NOTHING = Box(-math.inf, math.inf, (2,)), Box(-math.inf, math.inf, (0,))


class Gaussian(Oracle):
    """Members that know the linear truth but for an offset of each, and claim the same noise."""

    def __init__(self, std=NOISE, offsets=(0.0,), gain=1.0):
        super().__init__(PLANE, NOTHING, PLANE, self.dynamics, n_models=len(offsets))
        self.std, self.offsets, self.gain = std, torch.tensor(offsets), gain

    def dynamics(self, state, action):
        return self.gain * state + DRIFT * action

    def predict(self, state, context, action, std=None):
        mean = (self.dynamics(state, action)[:, None] + self.offsets[:, None])[:, :, None]
        weights = torch.ones_like(mean[..., 0])
        return mean, weights, self.std.expand_as(mean), torch.zeros(len(state))

    def get_log_prob(self, state, context, action, next_state):
        mean, _, std, term_prob = self.predict(state, context, action)
        members = Normal(mean[:, :, 0], std[:, :, 0]).log_prob(next_state[:, None]).sum(-1)
        return members.logsumexp(1) - math.log(self.n_models), term_prob, {}

    def rollout(
        self, initial_state, context, actions, deterministic=False, *, generator=None, statistics=True, n_alike=1
    ):
        shape = (len(initial_state), self.n_models, 1, 2)
        states = [initial_state[:, None, None].expand(shape)]
        for action in actions.unbind(1):
            noise = 0 if deterministic else self.std * torch.randn(shape[0], 1, 1, 2, generator=generator)
            after = self.dynamics(states[-1], action[:, None, None])
            states.append(after + self.offsets[:, None, None] + noise)
        return Batch(state=torch.stack(states, 3))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(n=5_000, gain=1.0):
    """Transitions of the truth that `Gaussian` knows."""
    generator = seeded()
    state, act = torch.randn(n, 2, generator=generator), torch.randn(n, 2, generator=generator)
    after = gain * state + DRIFT * act + NOISE * torch.randn(n, 2, generator=generator)
    return Batch(state=state, context=torch.zeros(n, 0), act=act, state_next=after)


def test_the_true_model_is_calibrated():
    report = evaluate_one_step(Gaussian(), noisy())
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    error = (levels * (1 - levels) / 5_000).sqrt()[:, None]
    assert ((report.mixture.coverage - levels[:, None]).abs() < 4 * error).all()
    torch.testing.assert_close(report.mixture.residual_std, torch.ones(2).double(), atol=0.04, rtol=0)
    torch.testing.assert_close(report.mixture.residual_mean, torch.zeros(2).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(report.mixture.rmse, NOISE.double(), atol=0, rtol=0.04)
    entropy = 0.5 + 0.5 * math.log(2 * math.pi) + NOISE.double().log()
    torch.testing.assert_close(report.mixture.nll, entropy, atol=0.04, rtol=0)
    assert report.nll == pytest.approx(float(entropy.sum()), abs=0.06)
    explained = 1 - NOISE.square() / (NOISE.square() + DRIFT.square())
    torch.testing.assert_close(report.mixture.r2, explained.double(), atol=0.03, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_over_and_underconfidence_are_measured(factor):
    report = evaluate_one_step(Gaussian(std=factor * NOISE), noisy())
    torch.testing.assert_close(report.mixture.residual_std, torch.full((2,), 1 / factor).double(), rtol=0.04, atol=0)
    for level, observed in zip(LEVELS, report.mixture.coverage, strict=True):
        inside = Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2)) * factor
        expected = 2 * Normal(0.0, 1.0).cdf(inside) - 1
        torch.testing.assert_close(observed, expected.double().expand(2), atol=0.03, rtol=0)
    assert report.metrics()["model/calibration_error"] > 0.1


def test_a_model_without_a_density_has_no_likelihood():
    class Densityless(Gaussian):
        def get_log_prob(self, state, context, action, next_state):
            raise NotImplementedError

    assert math.isnan(evaluate_one_step(Densityless(), noisy(10)).nll)


@pytest.mark.parametrize("rounding", [0.0, 6e-5])  # 6e-5 is the distance between float32 numbers at 1000
def test_constant_dimensions_have_no_r2_and_are_left_out_of_the_overall_value(rounding):
    data = noisy(50)
    data.state[:, 1] = 1000.0
    data.state_next[:, 1] = 1000.0 + rounding * (torch.arange(50) % 2)
    report = evaluate_one_step(Gaussian(offsets=(-0.1, 0.1)), data)
    metrics = report.metrics()
    assert report.varies.tolist() == [True, False]
    assert report.mixture.r2.isnan().tolist() == [False, True]
    assert metrics["model/r2"] == metrics["model/r2_min"] == float(report.mixture.r2[0])
    assert metrics["model/r2/member_1"] == float(report.members.r2[1, 0])
    figure = draw_predictions(report)
    assert [axes.get_title() for axes in figure.axes] == [f"state 0: R² {metrics['model/r2']:.3f}", "state 1: constant"]

    far = Batch(state=data.state + 1, context=data.context, act=data.act)
    disagreement = evaluate_disagreement(Gaussian(offsets=(-0.1, 0.1)), data, far)
    unit = report.change[:, 0].std(correction=0)
    torch.testing.assert_close(disagreement.score, (0.1 / unit).expand(50), rtol=1e-5, atol=0)


def test_a_small_change_of_a_large_state_is_a_change():
    data = noisy(50)
    data.state[:, 1] = 1000.0
    data.state_next[:, 1] = 1000.0 + 1e-3 * (torch.arange(50) % 2)
    assert evaluate_one_step(Gaussian(), data).varies.all()


def test_there_is_no_r2_where_nothing_varies():
    state = torch.full((10, 2), 1000.0)
    data = Batch(state=state, context=state[:, :0], act=state, state_next=state)
    metrics = evaluate_one_step(Gaussian(), data).metrics()
    assert math.isnan(metrics["model/r2"])
    assert math.isnan(metrics["model/r2_min"])
    assert not evaluate_disagreement(Gaussian(offsets=(-0.1, 0.1)), data).score.any()


def test_mixtures_agree_with_torch_distributions():
    nets = linear_nets()
    model = make_model(nets)
    state, context, act = inputs(50)
    after = state + torch.randn(50, S, generator=seeded())
    data = Batch(state=state, context=context, act=act, state_next=after)
    report = evaluate_one_step(model, data)
    expected = log_prob(nets, state, context, act, after).detach()
    assert report.nll == pytest.approx(-float(expected.mean()), rel=1e-5)

    change, levels = (after - state).double(), torch.tensor(LEVELS).double()[:, None, None]
    parts = [[x.detach() for x in outputs(net, state, context, act)[:3]] for net in nets]
    for d in range(S):
        mean, std = (torch.cat([part[i][..., d] for part in parts], -1) for i in (0, 1))
        whole = MixtureSameFamily(Categorical(torch.cat([part[2] for part in parts], -1)), Normal(mean, std))
        members = [MixtureSameFamily(Categorical(w), Normal(m[..., d], s[..., d])) for m, s, w in parts]
        for m, (scores, law) in enumerate([(report.mixture, whole), *((report.members, law) for law in members)], -1):
            of = (lambda x, m=m: x) if m < 0 else (lambda x, m=m: x[m])
            x = change[:, d]
            error = x - law.mean
            close = {"atol": 1e-4, "rtol": 1e-4, "check_dtype": False}
            torch.testing.assert_close(of(scores.nll)[d], -law.log_prob(x).mean(), **close)
            torch.testing.assert_close(of(scores.rmse)[d], error.square().mean().sqrt(), **close)
            torch.testing.assert_close(of(scores.r2)[d], 1 - error.square().mean() / x.var(correction=0), **close)
            torch.testing.assert_close(of(scores.residual_mean)[d], (error / law.stddev).mean(), **close)
            inside = ((2 * law.cdf(x) - 1).abs() <= levels[:, 0]).double().mean(-1)
            torch.testing.assert_close(of(scores.coverage)[:, d], inside, **close)
        torch.testing.assert_close(report.std[:, d], whole.stddev, **close)
    assert report.members.coverage.shape == (M, len(LEVELS), S)
    assert report.change.shape == report.predicted.shape == report.aleatoric_std.shape == (50, S)
    assert K > 1


def trajectories(n=1500, horizon=6, gain=0.9):
    generator = seeded()
    states, act = [torch.randn(n, 2, generator=generator)], torch.randn(n, horizon, 2, generator=generator)
    for action in act.unbind(1):
        states.append(gain * states[-1] + DRIFT * action + NOISE * torch.randn(n, 2, generator=generator))
    return Batch(state=torch.stack(states, 1), context=torch.zeros(n, 0), act=act)


def test_open_loop_error_and_band_of_a_linear_system_are_those_of_the_closed_form():
    gain, offsets, particles = 0.9, (-0.2, 0.0, 0.2), 40
    report = evaluate_open_loop(Gaussian(offsets=offsets, gain=gain), trajectories(gain=gain), particles)
    powers = torch.tensor([sum(gain ** (2 * i) for i in range(k)) for k in range(7)])
    drift = torch.tensor([sum(gain**i for i in range(k)) for k in range(7)])
    noise = powers[:, None].sqrt() * NOISE
    offset = drift[:, None].expand(7, 2) * (2 / 3 * 0.2**2) ** 0.5
    expected = {
        "rmse": noise * (1 + 1 / particles) ** 0.5,  # the particles' mean is random too
        "band": (noise.square() + offset.square()).sqrt(),
        "epistemic": offset,
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(report, name), value.double(), rtol=0.06, atol=1e-6)
    biased = (expected["rmse"].square() + (0.2 * drift[:, None]).square()).sqrt().double()
    torch.testing.assert_close(report.member_rmse[0], biased, rtol=0.06, atol=1e-6)
    assert report.member_rmse.shape == (3, 7, 2)
    assert report.diverged == 0


def test_open_loop_bands_of_the_true_model_hold_their_share():
    report = evaluate_open_loop(Gaussian(gain=0.9), trajectories(), 99, generator=seeded(1))
    torch.testing.assert_close(report.coverage[1:], torch.full((6, 2), 0.9).double(), atol=0.04, rtol=0)
    sure = evaluate_open_loop(Gaussian(std=NOISE / 2, gain=0.9), trajectories(), 20, generator=seeded(1))
    assert (sure.coverage[1:] < 0.68).all()
    metrics = report.metrics()
    assert metrics["model/open_loop/rmse_4"] == pytest.approx(float(report.rmse[4].square().mean().sqrt()))
    assert {f"model/open_loop/band_{k}" for k in (1, 2, 4, 6)} <= metrics.keys()


@pytest.mark.parametrize("rounding", [0.0, 6e-5])
def test_the_relative_error_leaves_out_dimensions_that_move_by_rounding_alone(rounding):
    data = trajectories(50)
    moving = evaluate_open_loop(Gaussian(gain=0.9), data, 20, generator=seeded())
    data.state[..., 1] = 1000.0 + rounding * (torch.arange(7) % 2)
    report = evaluate_open_loop(Gaussian(gain=0.9), data, 20, generator=seeded())
    assert report.moves[1:].tolist() == [[True, False]] * 6
    relative = report.metrics()["model/open_loop/relative_rmse_6"]
    assert relative == pytest.approx(float(moving.rmse[6, 0] / moving.baseline[6, 0]))


@pytest.mark.parametrize("particles_per_model", [1, 4])
def test_rollouts_of_an_ensemble_of_any_number_of_particles(particles_per_model):
    model = make_model(n_particles_per_model=particles_per_model)
    state, context, _ = inputs(3)
    data = Batch(state=state[:, None].repeat(1, 6, 1), context=context, act=inputs(3, 5)[2])
    report = evaluate_open_loop(model, data, 6, generator=seeded())
    assert report.rmse.shape == (6, S)
    assert not report.rmse[0].any()
    assert not report.baseline.any()
    again = evaluate_open_loop(model, data, 6, generator=seeded())
    torch.testing.assert_close(report.rmse, again.rmse)


def test_disagreement_is_the_spread_of_the_means_in_units_of_the_change():
    offsets, data = (-0.2, 0.0, 0.2), noisy(1000)
    report = evaluate_disagreement(Gaussian(offsets=offsets), data)
    spread = (2 / 3) ** 0.5 * 0.2
    torch.testing.assert_close(report.epistemic_std, torch.full((1000, 2), spread).double())
    variance = (data.state_next - data.state).double().var(0, correction=0)
    torch.testing.assert_close(report.score, (spread**2 / variance).mean().sqrt().expand(1000), rtol=1e-5, atol=0)
    assert math.isnan(report.auroc)
    assert report.off_score is None
    error = (data.state_next - Gaussian().dynamics(data.state, data.act)).abs().double()
    torch.testing.assert_close(report.error, error, atol=1e-6, rtol=0)


def test_disagreement_where_the_error_is_has_rank_correlation_one():
    class Honest(Gaussian):
        """Members whose disagreement is proportional to the error."""

        def predict(self, state, context, action, std=None):
            mean, weights, std, term_prob = super().predict(state, context, action)
            wrong = state.abs()[:, None, None]
            return mean + wrong * (1 + 0.1 * self.offsets[:, None, None]), weights, std, term_prob

    data = noisy(300)
    data.state_next = Gaussian().dynamics(data.state, data.act)
    far = Batch(state=data.state + 10, context=data.context, act=data.act)
    report = evaluate_disagreement(Honest(offsets=(-1.0, 0.0, 1.0)), data, far)
    torch.testing.assert_close(report.rank_correlation, torch.ones(2).double(), atol=1e-3, rtol=0)  # float32 ties
    assert report.off_score.shape == (300,)
    assert report.metrics()["model/disagreement/auroc"] == report.auroc == 1
    single = evaluate_disagreement(Gaussian(), data, far)
    assert single.rank_correlation.isnan().all()  # one member never disagrees
    assert single.auroc == 0.5


@pytest.mark.parametrize("n_values", [3, 1000])
def test_ranks_with_ties_against_brute_force(n_values):
    a, b = (torch.randint(n_values, (40,), generator=seeded(i)).double() for i in (0, 1))
    for x in (a, b):
        brute = torch.tensor([sum((y < v) + 0.5 * (y == v) for y in x) + 0.5 for v in x], dtype=torch.float64)
        torch.testing.assert_close(ranks(x), brute)
    reference = torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1]
    assert spearman(a, b) == pytest.approx(float(reference))
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    pairs = [(q > p) + 0.5 * (q == p) for p in a for q in b[:25]]
    assert auroc(a, b[:25]) == pytest.approx(float(sum(pairs)) / len(pairs))


def test_measures_change_neither_the_mode_nor_the_statistics():
    model = make_model(normalize_targets=True).train()
    state, context, act = inputs(8)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    data = Batch(state=state, context=context, act=act, state_next=state + 1)
    evaluate_one_step(model, data)
    evaluate_disagreement(model, data)
    assert model.training
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)


def test_metrics_are_floats_that_name_the_model():
    data = noisy(200)
    model = Gaussian(offsets=(-0.1, 0.1))
    metrics = evaluate_one_step(model, data).metrics()
    metrics |= evaluate_open_loop(model, trajectories(20), 5).metrics() | evaluate_disagreement(model, data).metrics()
    assert all(name.startswith("model/") and type(value) is float for name, value in metrics.items())
    assert {"model/r2/state_1", "model/r2/member_1", "model/coverage_90", "model/coverage_99"} <= metrics.keys()


def test_figures_draw_the_measures_and_name_the_dimensions():
    data, names = noisy(200), ["x", "y"]
    model = Gaussian(offsets=(-0.1, 0.1))
    one_step = evaluate_one_step(model, data)
    figures = [
        draw_predictions(one_step, names, title="t"),
        draw_calibration(one_step),
        draw_open_loop(evaluate_open_loop(model, trajectories(20), 5), names),
        draw_disagreement(evaluate_disagreement(model, data), names),
        draw_disagreement(evaluate_disagreement(model, data, data)),
    ]
    assert [axes.get_title().partition(":")[0] for axes in figures[2].axes] == names
    line = figures[1].axes[0].lines[-1]
    assert line.get_xdata()[1:] == pytest.approx(LEVELS)
    assert line.get_ydata()[1:] == pytest.approx(one_step.mixture.coverage[:, 0].numpy())
    assert len(figures[4].legends[0].get_texts()) == len(figures[3].legends[0].get_texts()) + 1


def test_figures_of_wide_states_draw_the_first_dimensions_and_say_so(monkeypatch):
    monkeypatch.setattr(figures_module, "MAX_DIMS", 1)
    data, names, model = noisy(200), ["x", "y"], Gaussian(offsets=(-0.1, 0.1))
    one_step = evaluate_one_step(model, data)
    for figure, n_panels in (
        (draw_predictions(one_step, names, title="t"), 1),
        (draw_calibration(one_step), 1),
        (draw_open_loop(evaluate_open_loop(model, trajectories(20), 5), names), 1),
        (draw_disagreement(evaluate_disagreement(model, data), names), 2),
    ):
        assert len(figure.axes) == n_panels
        assert figure.get_suptitle().endswith("the first 1 of 2 dimensions of the state")


@pytest.mark.parametrize("size", [1e-7, 2e-3, 3e4])
def test_tick_labels_do_not_overlap_whatever_the_size_of_the_numbers(size):
    figure, panels, _ = panel_grid(2, None, "title")
    for i, axes in enumerate(panels):
        axes.plot([-size, (i + 1) * size], [0.3 * size, (i + 1) * size])
    figure.canvas.draw()
    for axes in panels:
        for which, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = axis.get_view_interval()
            labels = {label.get_position()[which]: label for label in axis.get_ticklabels()}
            labels = {place: label for place, label in labels.items() if low <= place <= high}
            assert len(labels) >= 2
            assert [float(label.get_text()) for label in labels.values()] == pytest.approx(
                list(labels), abs=1e-6 * size
            )
            boxes = [label.get_window_extent() for label in labels.values()]
            assert not any(one.overlaps(following) for one, following in pairwise(boxes))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"act": None}, TypeError, "data.act is NoneType, expected a torch.Tensor"),
        ({"context": torch.zeros(3, 0)}, ValueError, "data.context has 3 rows, expected those of state"),
        ({"state": torch.zeros(0, 2)}, ValueError, "data.state has 0 rows"),
    ],
)
def test_bad_data_is_named(change, error, message):
    with pytest.raises(error, match=message):
        evaluate_one_step(Gaussian(), Batch({**noisy(10), **change}))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"levels is 1\.5"):
        evaluate_one_step(Gaussian(), noisy(10), levels=[1.5])
    data = trajectories(5)
    with pytest.raises(ValueError, match=r"data.state has shape \(5, 6, 2\), expected \(5, 7, S\)"):
        evaluate_open_loop(Gaussian(), Batch(state=data.state[:, 1:], context=data.context, act=data.act))
    with pytest.raises(ValueError, match="n_particles is 0"):
        evaluate_open_loop(Gaussian(), data, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_fitted_ensemble_knows_the_noise_and_where_the_data_ends(seed):
    row, one_step, *_ = measure(seed)
    assert 0.9 < row.std_ratio < 1.1
    assert row.std_deviation < 0.1
    assert ((one_step.mixture.coverage[LEVELS.index(0.9)] - 0.9).abs() < 0.02).all()
    assert row.auroc >= 0.9
