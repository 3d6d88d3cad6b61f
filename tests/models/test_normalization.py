"""One rule for what hardly varies: steady, small and rare changes of targets, and inputs far from the data."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.data import Batch

from layeredrl.models import FitConfig, ProbabilisticEnsemble, fit
from layeredrl.models.nets import MAX_INPUT, GaussianMixtureMLP, InputStandardizer
from layeredrl.models.normalization import BlockMoments, Moments, RunningScale, in_chunks, merged, varies


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scale_of(targets, state):
    scale = RunningScale(targets.shape[1], 0.01)
    scale.fit(Moments.of(targets), Moments.of(state))
    return scale.std


def make(width, **settings):
    torch.manual_seed(0)
    spaces = Box(-np.inf, np.inf, (width,)), Box(-1, 1, (0,)), Box(-1, 1, (1,))
    net = partial(GaussianMixtureMLP, hidden=(16,))
    return ProbabilisticEnsemble(*spaces, net, n_models=2, create_optimizer=True, **settings).eval()


def transitions(state, state_next):
    n = len(state)
    return Batch(
        state=state,
        context=state[:, :0],
        act=torch.rand(n, 1, generator=seeded()) * 2 - 1,
        state_next=state_next,
        terminated=torch.zeros(n),
    )


def test_merged_moments_are_those_of_all_rows():
    x = 1e3 + torch.randn(9000, 3, generator=seeded()) * torch.tensor([1.0, 1e-2, 50.0])
    found = merged([{"x": Moments.of(part["x"])} for part in in_chunks({"x": x})])["x"]
    assert found.n_rows == 9000
    np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, x.double().var(0, correction=0), rtol=1e-9)


def test_moments_of_a_block_are_computed_once_until_it_is_forgotten():
    x, computed, known = torch.randn(12, 2, generator=seeded()), [], BlockMoments()

    def compute(block):
        computed.append(block)
        return {"x": Moments.of(x[slice(*block)])} if block[0] < block[1] else None

    def assert_merged(blocks, new, rows):
        computed.clear()
        (found,) = known.merged(blocks, compute)
        assert computed == new
        np.testing.assert_allclose(found["x"].mean, rows.double().mean(0))
        np.testing.assert_allclose(found["x"].variance, rows.double().var(0, correction=0))

    first, second, third, empty = (0, 4), (4, 8), (8, 12), (12, 12)
    assert known.merged([empty], compute) == []
    assert_merged([first, second, empty], [first, second], x[:8])
    assert_merged([second, third, empty], [third], x[4:])
    assert_merged([first, second], [first], x[:8])  # it was forgotten
    x[5] = 0.0
    known.forget(lambda block: block[0] <= 5 < block[1])
    assert_merged([first, second], [second], x[:8])
    known.forget(lambda block: block == second)
    assert_merged([first], [], x[:4])


@pytest.mark.parametrize("mean", [0.0, 9.0, -9.0])
def test_the_scale_of_ordinary_targets_is_their_standard_deviation(mean):
    state = torch.randn(500, 2, generator=seeded())
    targets = mean + torch.randn(500, 2, generator=seeded(1))
    targets = (targets - targets.mean(0)) / targets.std(0) + mean
    torch.testing.assert_close(scale_of(targets, state), torch.ones(2))


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-4, 1e-3, 5e-3])
def test_a_steady_change_is_a_target_of_moderate_size(noise):
    state = torch.randn(500, 1, generator=seeded())
    targets = 0.05 + noise * torch.randn(500, 1, generator=seeded(1))
    normalized = targets / scale_of(targets, state)
    assert 0.9 < normalized.mean() < 10.5


def test_a_running_scale_agrees_with_that_of_a_fit():
    state, targets = torch.randn(300, 3, generator=seeded()), torch.randn(300, 3, generator=seeded(1))
    targets[:, 1], targets[:, 2] = 0.01, 0.0
    scale = RunningScale(3, 0.01)
    scale.update(torch.cat([targets, targets + 9]), torch.cat([state, state]), torch.arange(600) < 300)
    torch.testing.assert_close(scale.std, scale_of(targets, state))
    scale.update(targets[:1], state[:1])  # a single row changes nothing
    torch.testing.assert_close(scale.std, scale_of(targets, state))


@pytest.mark.parametrize("value", [0.1, 1e6, -3e-7])
def test_rounding_is_no_variation(value):
    x = torch.full((100, 1), value)
    x[::2] = torch.nextafter(x[::2], torch.tensor(torch.inf))
    moments = Moments.of(x)
    assert not varies(moments.variance.sqrt(), moments.mean.abs()).any()
    standardizer = InputStandardizer(1)
    standardizer.fit(x)
    assert standardizer.inverse_std.item() == 1


def test_a_clock_that_rounding_makes_jump_is_of_moderate_size():
    standardizer = InputStandardizer(1)
    clock = (1.7e9 + torch.arange(500.0, dtype=torch.float64)).float().unsqueeze(-1)
    standardizer.fit(clock)
    assert standardizer(clock).abs().max() < 1


def test_small_units_are_variation():
    x = 1e-9 * torch.randn(100, 1, generator=seeded())
    standardizer = InputStandardizer(1)
    standardizer.fit(x)
    assert standardizer(x).std(correction=0).item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_rollouts_hold_a_dimension_that_never_changes(spread):
    state = torch.randn(400, 2, generator=seeded()) * torch.tensor([1.0, spread])
    change = torch.stack([0.1 * torch.randn(400, generator=seeded(1)), torch.zeros(400)], 1)
    model = make(2)
    result = fit(model, transitions(state, state + change), FitConfig(epochs=2, batch_size=64), generator=seeded())
    assert result.loss.isfinite().all()
    start = state[:20]
    states = model.rollout(start, start[:, :0], torch.zeros(20, 25, 1), generator=seeded()).state
    assert (states[..., 1] - start[:, None, None, None, 1]).abs().max() < 0.01 * spread


@pytest.mark.parametrize("rollout_dtype", [None, torch.bfloat16])
def test_inputs_far_from_the_data_have_bounded_predictions(rollout_dtype):
    """Noise of 1e-5 while fitting, then a move of a thousand of its deviations."""
    model = make(2, rollout_dtype=rollout_dtype)
    state = torch.randn(400, 2, generator=seeded()) * torch.tensor([1.0, 1e-5])
    data = transitions(state, state + 0.1 * torch.randn(400, 1, generator=seeded(1)) * torch.tensor([1.0, 1e-5]))
    fit(model, data, FitConfig(epochs=2), generator=seeded())
    far, farther = torch.tensor([[0.0, 0.01]]), torch.tensor([[0.0, 10.0]])
    none, act = torch.zeros(1, 0), torch.zeros(1, 25, 1)
    with torch.no_grad():
        one, other = (model.rollout(x, none, act, True).state for x in (far, farther))
        torch.testing.assert_close(one[..., 0], other[..., 0])  # both at the limit
        assert one.abs().max() < 100
        mean = model.predict(far, none, act[:, 0])[0]
        rtol = 1e-4 if rollout_dtype is None else 0.05
        torch.testing.assert_close(one[:, :, 0, 1], mean[:, :, 0], rtol=rtol, atol=rtol)


def test_inputs_are_unlimited_before_the_first_fit_and_limited_after_it():
    standardizer = InputStandardizer(2, limit=MAX_INPUT)
    x = torch.tensor([[1e6, -1e6]])
    assert torch.equal(standardizer(x), x)
    place = standardizer.bound.data_ptr()
    standardizer.fit(torch.randn(50, 2, generator=seeded()))
    assert torch.equal(standardizer(x), torch.tensor([[MAX_INPUT, -MAX_INPUT]]))
    assert standardizer.bound.data_ptr() == place  # captured graphs read it there
    assert standardizer(torch.full((1, 2), torch.nan)).isnan().all()


class Tenfold(torch.nn.Module):
    """Predicts ten times the state as the change, without noise."""

    def forward(self, state, context, action):
        mean = 10 * state.unsqueeze(-2)
        weights = mean.new_ones(mean.shape[:-1])
        return (mean, torch.full_like(mean, 1e-9)), weights, mean.new_zeros(state.shape[:-1])


def tenfold():
    spaces = Box(-np.inf, np.inf, (2,)), Box(-1, 1, (0,)), Box(-1, 1, (1,))
    return ProbabilisticEnsemble(*spaces, lambda *_: Tenfold(), n_models=2, normalize_targets=False).eval()


def test_a_particle_absurdly_far_out_has_diverged_and_is_held():
    model, none = tenfold(), torch.zeros(2, 0)
    start, actions = torch.tensor([[0.5, 0.0], [0.0, 2e5]]), torch.zeros(2, 12, 1)
    before = model.rollout(start, none, actions, True)
    assert not before.diverged.any()  # without statistics only what is not finite has
    state = torch.randn(100, 2, generator=seeded()) * torch.tensor([1.0, 1e-6])
    rows = transitions(state, state)
    model.fit_statistics({key: rows[key] for key in ("state", "context", "act", "state_next")})
    result = model.rollout(start, none, actions, True)
    # 0.5 * 11^t exceeds a million at t = 7; the other particle starts far out itself and may go a million times as far.
    assert result.diverged[0, 0, 0].tolist() == [t >= 6 for t in range(12)]
    assert result.state[0, 0, 0, :, 0].tolist() == [0.5 * 11 ** min(t, 6) for t in range(13)]
    assert result.diverged[1, 0, 0].tolist() == [t >= 5 for t in range(12)]


def test_a_move_that_is_large_only_beside_tiny_spreads_has_not_diverged():
    model = make(2)
    state = 1e-9 * torch.randn(100, 2, generator=seeded())
    fit(model, transitions(state, state), FitConfig(epochs=1), generator=seeded())
    moved = torch.tensor([[0.0, 500.0]])
    assert not model.rollout(moved, moved[:, :0], torch.zeros(1, 5, 1)).diverged.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_changes_no_scale(bad):
    scale = RunningScale(2, 0.1)
    good, state = torch.randn(50, 2), torch.randn(50, 2)
    scale.update(good, state)
    before = copy.deepcopy(scale.state_dict())
    wrong = good.clone()
    wrong[3, 1] = bad
    scale.update(wrong, state)
    for name, value in scale.state_dict().items():
        assert torch.equal(value, before[name]), name
    first = RunningScale(2, 0.1)
    first.update(wrong, state)
    assert not first.initialized
    first.update(good, state)
    torch.testing.assert_close(first.std, scale.std)
